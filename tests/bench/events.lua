-- wrk's script: distinct events, each signed in its second as the platform does, over kept-alive connections.
-- Arguments: a name for this run, which is the time of its start, and a signed query for each second from then on.
local body = '{"event_type":"SHOOT_SCRIPT_SWITCH","message":"{\\"room_id\\":\\"26f065244f754b3aa853b649a21aaf66\\",\\"job_id\\":\\"%s-%d\\",\\"scene_script_name\\":\\"商品1\\",\\"shoot_script_sequence_no\\":\\"%d\\",\\"shoot_script_title\\":\\"段落2\\"}"}'

function init(args)
  run, count = args[1], 0
  queries, first = {unpack(args, 2)}, math.floor(tonumber(run))
end

function request()
  count = count + 1
  local query = queries[os.time() - first + 1]
  return wrk.format("POST", "/callbacks/metastudio?" .. query, nil, string.format(body, run, count % 1000, count))
end

-- wrk's script: distinct, signed events, kept-alive connections. Arguments: the signed query, and a name for this run.
local body = '{"event_type":"SHOOT_SCRIPT_SWITCH","message":"{\\"room_id\\":\\"26f065244f754b3aa853b649a21aaf66\\",\\"job_id\\":\\"%s-%d\\",\\"scene_script_name\\":\\"商品1\\",\\"shoot_script_sequence_no\\":\\"%d\\",\\"shoot_script_title\\":\\"段落2\\"}"}'

function init(args)
  query, run, count = args[1], args[2], 0
end

function request()
  count = count + 1
  return wrk.format("POST", "/callbacks/metastudio?" .. query, nil, string.format(body, run, count % 1000, count))
end

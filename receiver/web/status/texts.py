"""The texts of the status page, by language. A text's name is that of the place where the templates use it."""

from __future__ import annotations

import re

ENGLISH = {
    "title": "MetaStudio callback receiver",
    "skip": "Skip to the content",
    "at": "at",
    "utc": "All times are UTC.",
    "refreshed": "Refreshed every 10 seconds.",
    "receiver": "Receiver",
    "callbacks_taken": "Callbacks are taken",
    "callbacks_not_taken": "Callbacks are not taken",
    "callbacks_unknown": "The journal does not answer",
    "journal": "Journal",
    "waiting": "events wait",
    "oldest": "oldest since",
    "of": "of",
    "free": "free on its disk",
    "database": "Database",
    "up": "up",
    "down": "down",
    "unknown": "not known yet",
    "since": "since",
    "not_read": "The database did not answer this page in time.",
    "certificate": "Certificate",
    "ends": "ends",
    "no_certificate": "none: this is plain HTTP",
    "callbacks": "Callbacks",
    "accepted": "accepted",
    "rejected": "rejected",
    "endpoint": "Endpoint",
    "reason": "Reason",
    "count": "Count",
    "latest_rejections": "Latest rejections",
    "from": "from",
    "live": "Live streams",
    "more_live": "There are more.",
    "none": "None.",
    "job": "Job",
    "room": "Room",
    "state": "State",
    "state_since": "Since",
    "connected_time": "Connected",
    "reconnects": "Reconnects",
    "on_now": "On now",
    "product": "Product",
    "last_hour": "Last hour",
    "whole_life": "Whole time",
    "connected": "connected",
    "latest_jobs": "Latest jobs",
    "paragraphs": "Paragraphs",
    "replies": "Replies",
    "last_event": "Last event",
    "events": "Latest events",
    "time": "Time",
    "event": "Event",
    "stale": "Stale jobs",
    "there": "At the platform",
    "findings": "Reconciling",
    "finding": "Finding",
    "checked": "checked",
    "never_checked": "receiver reconcile has not run.",
    "timeline": "Timeline",
    "lasted": "Lasted",
    "still": "still",
    "outages": "Outages",
    "longest": "longest",
    "all_events": "Events",
    "cut": "Only the latest events are shown; `receiver history` has all.",
    "not_found": "There is no such job.",
    "job_not_read": "The database did not answer in time. This page asks again.",
    "back": "Overview",
    "kinds": {"state": "state", "paragraph": "paragraph", "reply": "reply", "other": "event"},
    "states": {"stale": "stale", "ended there": "ended there", "": "-"},
    "finding_names": {
        "end_missing": "no END came here",
        "silent": "nothing came here for five minutes",
        "registered_elsewhere": "its callbacks go to another URL",
        "duration_gap": "connected for another time than here",
        "unknown_there": "there is no such job at the platform",
    },
}
CHINESE = ENGLISH | {"title": "MetaStudio 回调接收器"}
TEXTS = {"en": ENGLISH, "zh": CHINESE}


def preferred(accept_language: str) -> str:
    """The language for an Accept-Language header: the first of those that are preferred most, or English."""
    weights = dict.fromkeys(TEXTS, 0.0)
    asked = []
    for part in accept_language.split(","):
        name, _, parameter = part.replace(" ", "").lower().partition(";")
        language = name.partition("-")[0]
        if language in TEXTS:
            asked.append(language)
            weights[language] = max(weights[language], _weight(parameter))
    best = max(asked, key=lambda language: weights[language], default="en")
    return best if weights[best] else "en"


def _weight(parameter: str) -> float:
    if not parameter:
        return 1.0
    match = re.fullmatch(r"q=([01](?:\.[0-9]{0,3})?)", parameter)
    return float(match[1]) if match else 0.0

# SPDX-License-Identifier: Apache-2.0
"""What the generated requests cannot know of this API.

A repeated Idempotency-Key gets the sandbox of the first request, or 409 once that was deleted: schemathesis would take
both for errors. So each valid key is made unique. And sandboxes take memory: only the newest stay. The only user owns the team
whose API key is used: what would end one of them is sent for one that is not there.
"""

import json
import os
import re
import uuid
from urllib.parse import urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import schemathesis

# An archive is bytes to it.
schemathesis.serializer.alias("application/x-tar", "application/octet-stream")

# Scenarios use sandboxes of earlier ones again, so most of what a host with two CPUs takes: builds and images need the rest.
KEPT = 20


def ask(method, path, query=""):
    url = urlunsplit(urlsplit(os.environ["API_CHECK_URL"])._replace(path=path, query=query))
    headers = {"X-API-Key": os.environ["API_CHECK_KEY"]}
    with urlopen(Request(url, method=method, headers=headers), timeout=60) as answer:
        return answer.read()


# Ids of the user, the team and the key, and what each becomes.
OWN = {
    one["id"]: one["id"][:-25] + "0" * 24 + "1"
    for path in ("/v1/admin/users", "/v1/admin/teams", "/v1/api-keys")
    for one in json.loads(ask("GET", path))
}


@schemathesis.hook
def filter_case(context, case):
    # A head of more than 32 KiB is refused before anybody looks what the request is.
    if len(urlencode(case.query or {}, doseq=True, errors="replace")) > 30_000:
        return False
    # Without a body, an empty file is written: HTTP sends an empty one no other way.
    if (case.method.upper(), case.path.rsplit("/", 1)[-1]) == ("PUT", "content") and type(case.body).__name__ == "NotSet":
        return False
    # A form has nothing but text: whatever was generated as an upload's path arrives as one.
    path = case.body.get("path", "") if isinstance(case.body, dict) else ""
    return not case.path.endswith("/write") or isinstance(path, (str, bytes))


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.method.upper() != "GET":
        for name, value in (case.path_parameters or {}).items():
            case.path_parameters[name] = OWN.get(value, value) if isinstance(value, str) else value
    components = case.meta.components.items() if case.meta else ()
    refused = any("query" in str(place).lower() and "negative" in str(part.mode).lower() for place, part in components)
    if case.path.endswith("/write") and case.query and not refused:
        # An upload has its path in the form or in the query, which the document cannot express.
        case.query.pop("path", None)
    if case.meta and "coverage" in str(case.meta.phase.name).lower():
        return  # It tests what happens without single headers, and repeats nothing that was deleted.
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,255}", key):
        case.headers["Idempotency-Key"] = uuid.uuid4().hex


@schemathesis.hook
def after_call(context, case, response):
    if case.method.upper() != "POST" or response.status_code != 201:
        return
    # Also those of builds of the platform.
    for listed in json.loads(ask("GET", "/v1/admin/sandboxes", "limit=100"))[KEPT:]:
        ask("DELETE", f"/v1/admin/sandboxes/{listed['sandbox']['id']}")

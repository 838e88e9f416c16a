# SPDX-License-Identifier: Apache-2.0
"""What the generated requests cannot know of this API.

A repeated Idempotency-Key gets the sandbox of the first request, or 409 once that was deleted: schemathesis would take
both for errors. So each valid key is made unique. And sandboxes take memory: only the newest stay.
"""

import json
import re
import uuid
from urllib.parse import urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import schemathesis

# An archive is bytes to it.
schemathesis.serializer.alias("application/x-tar", "application/octet-stream")

# Scenarios use sandboxes of earlier ones again, so as many as the host takes.
KEPT = 30


@schemathesis.hook
def filter_case(context, case):
    # A head of more than 32 KiB is refused before anybody looks what the request is.
    if len(urlencode(case.query or {}, doseq=True, errors="replace")) > 30_000:
        return False
    # A form has nothing but text: whatever was generated as an upload's path arrives as one.
    path = case.body.get("path", "") if isinstance(case.body, dict) else ""
    return not case.path.endswith("/write") or isinstance(path, (str, bytes))


@schemathesis.hook
def before_call(context, case, kwargs):
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
    sent = response.request

    def call(method, path, query=""):
        url = urlunsplit(urlsplit(sent.url)._replace(path=path, query=query))
        headers = {"X-API-Key": sent.headers["X-API-Key"]}
        with urlopen(Request(url, method=method, headers=headers), timeout=60) as answer:
            return answer.read()

    for sandbox in json.loads(call("GET", "/v1/sandboxes", "limit=100"))[KEPT:]:
        call("DELETE", f"/v1/sandboxes/{sandbox['id']}")

# SPDX-License-Identifier: Apache-2.0
"""Check of the server: prints its answer, and fails unless there is one."""

import urllib.request

print(urllib.request.urlopen("http://127.0.0.1:8000/").read().decode())

// SPDX-License-Identifier: Apache-2.0
// Uses the generated TypeScript client against a running Wrenn: create, run, write, read, list, delete; what a build refuses.
import { deepStrictEqual, strictEqual } from "node:assert";
import { randomBytes, randomUUID } from "node:crypto";
import { argv } from "node:process";
import createClient from "openapi-fetch";
import type { components, paths } from "./wrenn.js";

const [baseUrl = "", key = ""] = argv.slice(2);
const client = createClient<paths>({ baseUrl, headers: { "X-API-Key": key } });

/** The data of a response, or its error as an exception. */
function data<T>({ data, error, response }: { data?: T; error?: components["schemas"]["ErrorBody"]; response: Response }): T {
  if (error !== undefined) throw new Error(`${response.status} ${error.error.code}: ${error.error.message}`);
  return data as T;
}

const created = await client.POST("/v1/sandboxes", {
  params: { header: { "Idempotency-Key": randomUUID() } },
  body: { template: "minimal", vcpus: 1, memory_mb: 256, disk_size_mb: 1024, envs: { GREETING: "hello" } },
});
const sandbox = data(created);
strictEqual(sandbox.status, "running");
const id = { path: { id: sandbox.id } };
try {
  const ran = data(await client.POST("/v1/sandboxes/{id}/exec", {
    params: id,
    body: { cmd: "sh", args: ["-c", "echo $GREETING; exit 3"] },
  }));
  if (!("stdout" in ran)) throw new Error("it runs in the background");
  deepStrictEqual([ran.stdout, ran.exit_code, ran.encoding], ["hello\n", 3, "utf-8"]);
  const started = data(await client.POST("/v1/sandboxes/{id}/exec", {
    params: id,
    body: { cmd: "sleep", args: ["1000"], background: true, tag: "sleeper" },
  }));
  const ended = data(await client.DELETE("/v1/sandboxes/{id}/processes/{selector}", {
    params: { path: { id: sandbox.id, selector: "sleeper" }, query: { signal: "KILL" } },
  }));
  deepStrictEqual([ended.processes, "pid" in started && started.pid], [1, ended.pid]);

  const content = new Uint8Array(randomBytes(3 << 20));
  const form = new FormData();
  form.append("path", "dir/content");
  form.append("file", new Blob([content]));
  data(await client.POST("/v1/sandboxes/{id}/files/write", {
    params: id,
    body: { path: "dir/content", file: "" },
    bodySerializer: () => form,
  }));
  const read = data(await client.POST("/v1/sandboxes/{id}/files/read", {
    params: id,
    body: { path: "dir/content" },
    parseAs: "arrayBuffer",
  }));
  strictEqual(Buffer.compare(Buffer.from(read), content), 0);

  const put = data(await client.PUT("/v1/sandboxes/{id}/files/content", {
    params: { ...id, query: { path: "dir/raw", mode: "0640" } },
    body: "",
    bodySerializer: () => content,
    headers: { "Content-Type": "application/octet-stream" },
  }));
  strictEqual(put.size, content.length);
  const raw = data(await client.GET("/v1/sandboxes/{id}/files/content", {
    params: { ...id, query: { path: "dir/raw" } },
    parseAs: "arrayBuffer",
  }));
  strictEqual(Buffer.compare(Buffer.from(raw), content), 0);
  const signed = data(await client.POST("/v1/sandboxes/{id}/files/sign", {
    params: id,
    body: { path: "dir/raw", operation: "read" },
  }));
  strictEqual((await fetch(new URL(signed.url, baseUrl))).status, 200);
  const port = data(await client.GET("/v1/sandboxes/{id}/ports/{port}", {
    params: { path: { id: sandbox.id, port: 8000 } },
  }));
  deepStrictEqual([port.public, port.browser_url], [false, `${port.url}/?wrenn_traffic_token=${port.token}`]);

  const missing = await client.POST("/v1/sandboxes/{id}/files/read", { params: id, body: { path: "nothing" } });
  deepStrictEqual([missing.response.status, missing.error?.error.code], [404, "not_found"]);

  const listed = data(await client.GET("/v1/sandboxes", { params: { query: { limit: 100, status: ["running"] } } }));
  strictEqual(listed.some((one) => one.id === sandbox.id), true);
} finally {
  data(await client.DELETE("/v1/sandboxes/{id}", { params: id }));
}
const recipe = "RUN --secret=key true\n";
const refused = await client.POST("/v1/templates/builds", { body: { name: "smoke", recipe } });
deepStrictEqual([refused.response.status, refused.error?.error.code], [400, "invalid_request"]);
const registry = { username: "robot", password: "a token" };
const denied = await client.POST("/v1/sandboxes", { body: { image: "registry.example/none:1", registry } });
// Whether the host asks that registry at all depends on its configuration.
const codes: unknown[] = ["registry_denied", "registry_unavailable", "image_not_found"];
strictEqual(codes.includes(denied.error?.error.code), true, denied.error?.error.message);
const templates = data(await client.GET("/v1/templates"));
strictEqual(templates.some((one) => one.name === "minimal"), true);
const gone = await client.GET("/v1/sandboxes/{id}", { params: id });
strictEqual(gone.response.status, 404);

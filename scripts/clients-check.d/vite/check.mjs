// SPDX-License-Identifier: Apache-2.0
// Runs Vite in a sandbox and works with it through the proxy as a browser does: loads a page, connects to the server's
// WebSocket, changes a file, and gets the update.
import { deepStrictEqual, ok, strictEqual } from "node:assert";
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { get } from "node:http";
import { basename, join } from "node:path";
import { argv, execPath } from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const [wrenn, baseUrl, key, modules, work] = argv.slice(2);
const PORT = 5173;
/** Time limit for what takes longest, in milliseconds: Node.js begins in an emulated guest. */
const PATIENCE = 180_000;

const FILES = {
  "index.html": '<!doctype html><script type="module" src="/main.js"></script>\n',
  "main.js": "console.log('first'); import.meta.hot.accept();\n",
};

async function api(method, path, body, type = "application/json") {
  const response = await fetch(`${baseUrl}/v1/sandboxes${path}`, {
    method,
    headers: { "X-API-Key": key, ...(body === undefined ? {} : { "Content-Type": type }) },
    body: type === "application/json" && body !== undefined ? JSON.stringify(body) : body,
  });
  const text = await response.text();
  ok(response.ok, `${method} ${path}: ${response.status} ${text}`);
  return text === "" ? undefined : JSON.parse(text);
}

const put = (id, path, text) =>
  api("PUT", `/${id}/files/content?path=${encodeURIComponent(path)}`, text, "application/octet-stream");

/** This Node.js with its libraries, which work with any of the guest's own. */
function runtime() {
  const directory = join(work, "runtime");
  mkdirSync(directory);
  const libraries = execFileSync("ldd", [execPath], { encoding: "utf8" }).match(/\/\S+\.so\S*/g) ?? [];
  for (const file of [...new Set(libraries)]) copyFileSync(file, join(directory, basename(file)));
  copyFileSync(execPath, join(directory, "node"));
  const loader = libraries.map((file) => basename(file)).find((name) => name.startsWith("ld-linux"));
  return { directory, command: (at) => [`${at}/${loader}`, "--library-path", at, `${at}/node`] };
}

/** Sends a request to the port as its host; returns status and body. */
function load(address, path) {
  const proxy = new URL(address.url);
  const headers = { Host: proxy.host, "X-Wrenn-Traffic-Token": address.token };
  return new Promise((resolve, reject) => {
    const request = get({ host: "127.0.0.1", port: proxy.port, path, headers, timeout: PATIENCE }, (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("end", () => resolve([response.statusCode, Buffer.concat(pieces).toString()]));
      response.on("error", reject);
    });
    request.on("error", reject);
  });
}

async function tooLate() {
  await sleep(PATIENCE, undefined, { ref: false });
  throw new Error("no message came");
}

/** Messages of a WebSocket, in their order. */
async function* messages(socket) {
  const waiting = [];
  let wake = () => {};
  const settle = (item) => { waiting.push(item); wake(); };
  socket.on("message", (data) => settle(JSON.parse(data.toString())));
  for (const event of ["error", "close"]) socket.on(event, (cause) => settle(new Error(`${event}: ${cause}`)));
  for (;;) {
    const next = waiting.shift();
    if (next instanceof Error) throw next;
    if (next !== undefined) yield next;
    else await Promise.race([new Promise((resolve) => { wake = resolve; }), tooLate()]);
  }
}

const { id } = await api("POST", "", { memory_mb: 512 });
try {
  const { directory, command } = runtime();
  for (const [from, to] of [[`${directory}/.`, "/opt/node"], [join(modules, "node_modules"), "/srv/project/node_modules"]]) {
    execFileSync(wrenn, ["sandbox", "cp", "-u", "root", from, `${id}:${to}`], { stdio: ["ignore", "ignore", "inherit"] });
  }
  for (const [name, text] of Object.entries(FILES)) await put(id, `/srv/project/${name}`, text);
  const [cmd, ...args] = command("/opt/node");
  await api("POST", `/${id}/exec`, {
    cmd, args: [...args, "node_modules/vite/bin/vite.js", "--host", "127.0.0.1", "--port", `${PORT}`, "--strictPort"],
    cwd: "/srv/project", user: "root", background: true, tag: "vite",
  });
  const address = await api("GET", `/${id}/ports/${PORT}`);
  const begin = Date.now();
  let page = [0, ""];
  while (page[0] !== 200) {
    ok(Date.now() - begin < PATIENCE, `no page: ${page}`);
    await sleep(200);
    page = await load(address, "/");
  }
  ok(page[1].includes("/@vite/client") && page[1].includes("/main.js"), page[1]);
  const [, client] = await load(address, "/@vite/client");
  const token = /wsToken = "([^"]+)"/.exec(client)?.[1];
  ok(token, "no token of the WebSocket");
  ok((await load(address, "/main.js"))[1].includes("first"));

  const proxy = new URL(address.url);
  const socket = new WebSocket(`ws://127.0.0.1:${proxy.port}/?token=${token}`, "vite-hmr", {
    headers: { Host: proxy.host, "X-Wrenn-Traffic-Token": address.token }, origin: address.url,
  });
  const told = messages(socket);
  strictEqual((await told.next()).value.type, "connected");
  await put(id, "/srv/project/main.js", FILES["main.js"].replace("first", "second"));
  let update;
  do update = (await told.next()).value; while (update.type !== "update");
  deepStrictEqual(update.updates.map((one) => one.path), ["/main.js"]);
  ok((await load(address, `/main.js?t=${update.updates[0].timestamp}`))[1].includes("second"));
  socket.removeAllListeners();
  socket.terminate();
} catch (error) {
  console.error(execFileSync(wrenn, ["sandbox", "logs", id, "vite"], { encoding: "utf8" }));
  throw error;
} finally {
  await api("DELETE", `/${id}`);
}

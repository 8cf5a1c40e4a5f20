// A runner for Node with amqplib. `node runner.mjs amqp://… [COUNT]`.
// It receives requests, keeps them in the folder `inbox`, and reports how they end; `execution.py` executes them.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, open, readFile, readdir, rename, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import amqp from "amqplib";

const QUEUE = process.env.QUEUE ?? "pushgate.executions";
const PYTHON = process.env.PYTHON ?? "python3";
const EXECUTION = fileURLToPath(new URL("execution.py", import.meta.url));
const PENDING = "inbox/pending";
const ENDED = "inbox/ended";
const REPORTS = "inbox/reports";
const REPORT_EVERY = 300_000;
let reported = 0;
let executing;
const cancelled = new Set();

/** Return the request in a message, in either mode of CloudEvents. `redrive`: how often it was republished. */
function read(message) {
  let request = JSON.parse(message.content.toString());
  let redrive = message.properties.headers?.["ce-redrive"] ?? 0;
  if (request.specversion) {
    redrive = request.redrive ?? 0;
    request = request.data;
  }
  // The id becomes the name of a file.
  if (!/^[0-9a-f-]{36}$/.test(request.id) || !request.execution?.kind || !request.package) {
    throw new TypeError("fields are missing");
  }
  return { ...request, redrive: Number(redrive) };
}

/** Store a request; it is on disk when this returns. A repetition has the same id, and changes nothing. */
async function add(request) {
  for (const folder of [PENDING, ENDED]) {
    const path = `${folder}/${request.id}.json`;
    if (existsSync(path) && JSON.parse(await readFile(path, "utf8")).redrive >= request.redrive) return;
  }
  await write(`${PENDING}/${request.id}.json`, { ...request, received: Date.now() });
  await report(request, "accepted");
}

/** Store the request in a message; return false if the message is to be rejected for good. */
async function take(message) {
  let request;
  try {
    request = read(message);
  } catch (error) {
    console.error(`rejected for good: this is not an execution request: ${error.message}`);
    return false;
  }
  await add(request);
  return true;
}

/** Write an object to a file; it is on disk, and complete, when this returns. */
async function write(path, object) {
  const file = await open(`${path}.part`, "w");
  await file.writeFile(JSON.stringify(object));
  await file.sync();
  await file.close();
  await rename(`${path}.part`, path);
  const folder = await open(dirname(path));
  await folder.sync();
  await folder.close();
}

/** Return the objects in a folder, each with the path of its file. */
async function stored(folder) {
  const names = (await readdir(folder)).filter((name) => name.endsWith(".json"));
  const paths = names.map((name) => `${folder}/${name}`);
  return Promise.all(paths.map(async (path) => ({ ...JSON.parse(await readFile(path, "utf8")), path })));
}

/** Execute the stored requests, in the order in which they arrived, and send the reports. */
async function executePending() {
  await sendReports();
  for (const { path, ...request } of (await stored(PENDING)).sort((one, other) => one.received - other.received)) {
    if (!cancelled.has(request.id)) await report(request, "running");
    await sendReports();
    const repeating = setInterval(() => report(request, "running").then(sendReports).catch(console.error), REPORT_EVERY);
    const status = cancelled.has(request.id) ? null : await execute(request);
    clearInterval(repeating);
    const summary = cancelled.has(request.id) ? "stopped, because it was cancelled" : `ended with status ${status}`;
    console.error(`${request.id} ${summary}`);
    const ended = status === 0 ? "succeeded" : "failed";
    await report(request, cancelled.has(request.id) ? "cancelled" : ended, summary);
    cancelled.delete(request.id);
    await rename(path, `${ENDED}/${request.id}.json`);
    await sendReports();
  }
}

/** Store a report for Pushgate. */
async function report(request, state, summary) {
  if (!request.status_url) return;
  // Grows from report to report, also after a restart.
  const sequence = (reported = Math.max(reported + 1, Date.now() * 1000));
  const body = { id: request.id, state, at: new Date().toISOString(), sequence, summary, runner: hostname() };
  await write(`${REPORTS}/${sequence}.json`, { url: request.status_url, sequence, body });
}

/** Send the stored reports, oldest first; while Pushgate cannot be reached, they stay. */
async function sendReports() {
  for (const { path, url, body } of (await stored(REPORTS)).sort((one, other) => one.sequence - other.sequence)) {
    const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const status = await fetch(url, { ...options, signal: AbortSignal.timeout(10_000) })
      .then(async (answer) => {
        if (answer.ok && (await answer.json().catch(() => null))?.cancel_requested_at) cancel(body.id);
        return answer.status;
      })
      .catch(() => 0);
    if (status === 0 || status >= 500 || [408, 425, 429].includes(status)) return;
    if (status >= 400) console.error(`a report was refused: ${status}`);
    await rm(path, { force: true });
  }
}

/** Stop a request, or keep it from being executed. */
function cancel(id) {
  cancelled.add(id);
  if (executing?.id === id) executing.run.kill();
}

/** Execute a request in a process of its own; return the exit status. */
function execute(request) {
  const run = spawn(PYTHON, [EXECUTION], { stdio: ["pipe", "inherit", "inherit"] });
  executing = { id: request.id, run };
  run.stdin.on("error", () => {}); // it has ended before it has read everything: the status says why
  run.stdin.end(JSON.stringify(request));
  return new Promise((resolve, reject) => run.on("error", reject).on("close", resolve));
}

/** Process requests one by one; stop after `count` requests. */
async function main(url, count) {
  for (const folder of [PENDING, ENDED, REPORTS]) await mkdir(folder, { recursive: true });
  await executePending();
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  for (let left = count; left > 0; ) {
    // `get` instead of `consume`: no message is held here while an execution runs.
    const message = await channel.get(QUEUE);
    if (message) {
      if (await take(message)) channel.ack(message);
      else channel.reject(message, false);
      left -= 1;
    } else await sleep(1000);
    await executePending();
  }
  await channel.close();
  await connection.close();
}

await main(process.argv[2], Number(process.argv[3] ?? Infinity));

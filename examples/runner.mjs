// A runner for Node with amqplib. `node runner.mjs amqp://… [COUNT]`.
// It receives requests and keeps them in the folder `inbox`; `execution.py` executes them.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, open, readFile, readdir, rename } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import amqp from "amqplib";

const QUEUE = process.env.QUEUE ?? "pushgate.executions";
const PYTHON = process.env.PYTHON ?? "python3";
const EXECUTION = fileURLToPath(new URL("execution.py", import.meta.url));
const PENDING = "inbox/pending";
const ENDED = "inbox/ended";

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
  const path = `${PENDING}/${request.id}.json`;
  const file = await open(`${path}.part`, "w");
  await file.writeFile(JSON.stringify({ ...request, received: Date.now() }));
  await file.sync();
  await file.close();
  await rename(`${path}.part`, path);
  const folder = await open(PENDING);
  await folder.sync();
  await folder.close();
}

/** Execute the stored requests, in the order in which they arrived. */
async function executePending() {
  const names = (await readdir(PENDING)).filter((name) => name.endsWith(".json"));
  const requests = await Promise.all(names.map((name) => readFile(`${PENDING}/${name}`, "utf8").then(JSON.parse)));
  for (const request of requests.sort((one, other) => one.received - other.received)) {
    console.error(`${request.id} ended with status ${await execute(request)}`);
    await rename(`${PENDING}/${request.id}.json`, `${ENDED}/${request.id}.json`);
  }
}

/** Execute a request in a process of its own; return the exit status. */
function execute(request) {
  const run = spawn(PYTHON, [EXECUTION], { stdio: ["pipe", "inherit", "inherit"] });
  run.stdin.on("error", () => {}); // it has ended before it has read everything: the status says why
  run.stdin.end(JSON.stringify(request));
  return new Promise((resolve, reject) => run.on("error", reject).on("close", resolve));
}

/** Process requests one by one; stop after `count` requests. */
async function main(url, count) {
  await mkdir(PENDING, { recursive: true });
  await mkdir(ENDED, { recursive: true });
  await executePending();
  const connection = await amqp.connect(url);
  const channel = await connection.createChannel();
  for (let left = count; left > 0; ) {
    // `get` instead of `consume`: no message is held here while an execution runs.
    const message = await channel.get(QUEUE);
    if (!message) {
      await sleep(1000);
      continue;
    }
    let request;
    try {
      request = read(message);
    } catch (error) {
      console.error(`rejected for good: this is not an execution request: ${error.message}`);
      channel.reject(message, false);
    }
    if (request) {
      await add(request);
      channel.ack(message);
      await executePending();
    }
    left -= 1;
  }
  await channel.close();
  await connection.close();
}

await main(process.argv[2], Number(process.argv[3] ?? Infinity));

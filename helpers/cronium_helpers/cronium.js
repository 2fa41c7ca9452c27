"use strict";
/* The helpers for Node scripts: input, output, variables, event and condition of the execution this runs in.
 *
 *     const hosts = cronium.input("config.hosts");      // a global inside a job, or require("cronium")
 *     cronium.setVariable("LAST_COUNT", hosts.length);
 *     cronium.output({ count: hosts.length });
 *
 * Calls return plain values at once, so code with and without `await` works. Node has no blocking Unix socket, so a
 * worker thread, started by the first call, talks to the supervisor while this thread waits for it; it never keeps
 * a process alive. Being preloaded must cost nothing: nothing is required before it is needed. Node 12.3 and
 * later, no packages; the protocol is in PROTOCOL.md. This file stands alone: scripts may copy it.
 */

class CroniumError extends Error {
  /** `code` is stable (PROTOCOL.md lists them), the message is one sentence. */
  constructor(message, code) {
    super(message);
    this.name = "CroniumError";
    this.code = code;
  }
}

/** The input, null if there is none; with `key` one value of it: an exact key, else a path like `config.hosts.0`. */
function input(key) {
  return call("input", key === undefined ? [] : ["--", key]);
}

/** `output(value)` sets the whole output; `output(key, value)` sets one key of it and keeps the others. */
function output(...values) {
  if (values.length < 1 || values.length > 2) throw new TypeError("output() takes a value, or a key and a value");
  const value = values.pop();
  call("output", ["--", ...values, stringify(value)]);
}

/** A variable's value, `fallback` when there is no variable of that name. */
function getVariable(name, fallback = null) {
  try {
    return call("getVariable", ["--", name]);
  } catch (error) {
    if (error.code !== "variable.not_found") throw error;
    return fallback;
  }
}

/** Set a variable for this script, for the result and for the jobs after it. */
function setVariable(name, value) {
  call("setVariable", ["--", name, stringify(value)]);
}

/** Remove a variable. Throws when there is none. */
function deleteVariable(name) {
  call("deleteVariable", ["--", name]);
}

/** Add a number to a variable, which begins at 0, in one step; its new value. No parallel change is lost. */
function incrementVariable(name, by = 1) {
  return call("incrementVariable", ["--", name, stringify(by)]);
}

/** Put a text behind a variable's, which begins empty, in one step. No parallel change is lost. */
function appendVariable(name, text) {
  call("appendVariable", ["--", name, text]);
}

/** The event that this execution belongs to; with `field` one field of it, null when it is unknown. */
function event(field) {
  return call("event", field === undefined ? [] : ["--", field]);
}

/** Decide what the workflow does after this job. */
function setCondition(condition) {
  exchange(["cronium.setCondition", condition ? "true" : "false"]);
}

/** What was decided, null when nothing was. */
function getCondition() {
  return call("getCondition", []);
}

/** Say how far the script is, from 0 to 100, and what it does. */
function progress(percent, text) {
  exchange(["cronium.progress", "--", stringify(percent), ...(text === undefined ? [] : [text])]);
}

/** Say what came of it, as Markdown of at most 64 KiB, in place of what was said before. */
function summary(text) {
  exchange(["cronium.summary", "--", text]);
}

/** Have the platform do something, at most once, and return what it answers. In API mode only. */
function executeToolAction(tool, action, params = {}) {
  return call("executeToolAction", ["--", tool, action, stringify(params)]);
}

/** The action `send_message` of the tool `email`; `to` is one address or a list. */
function sendEmail({ to, ...message }) {
  return executeToolAction("email", "send_message", { ...message, to: Array.isArray(to) ? to : [to] });
}

/** The action `send_message` of the tool `slack`. */
function sendSlackMessage(message) {
  return executeToolAction("slack", "send_message", message);
}

/** The action `send_message` of the tool `discord`. */
function sendDiscordMessage(message) {
  return executeToolAction("discord", "send_message", message);
}

function call(helper, words) {
  const answer = exchange([`cronium.${helper}`, "--json", ...words]);
  return answer ? parse(answer) : null;
}

/* Integers beyond 2^53 are BigInt on both ways, because a number would lose their last digits. JSON.parse and
 * JSON.stringify know no BigInt, so one travels through them as a string that begins with a mark nobody can guess. */
function newMark() {
  return `cronium-integer-${require("crypto").randomBytes(12).toString("hex")}:`;
}

function parse(text) {
  if (!/[0-9]{16}/.test(text)) return JSON.parse(text);
  const mark = newMark();
  const token = /"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?/g;
  let marked = "";
  let copied = 0;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    if (found[0] === '"') {
      token.lastIndex = endOfString(text, found.index);
    } else if (/^-?[0-9]+$/.test(found[0]) && !Number.isSafeInteger(Number(found[0]))) {
      marked += `${text.slice(copied, found.index)}"${mark}${found[0]}"`;
      copied = token.lastIndex;
    }
  }
  if (copied === 0) return JSON.parse(text);
  return JSON.parse(marked + text.slice(copied), (key, value) =>
    typeof value === "string" && value.startsWith(mark) ? BigInt(value.slice(mark.length)) : value
  );
}

/** The position behind the string that begins at `start`: behind the first quote after an even number of backslashes. */
function endOfString(text, start) {
  for (let quote = text.indexOf('"', start + 1); ; quote = text.indexOf('"', quote + 1)) {
    let before = quote;
    while (text[before - 1] === "\\") before--;
    if ((quote - before) % 2 === 0) return quote + 1;
  }
}

function stringify(value) {
  let mark;
  let text;
  try {
    text = JSON.stringify(value, (key, item) => {
      if (typeof item === "number" && !Number.isFinite(item)) throw new TypeError(`${item} is no JSON number`);
      if (typeof item !== "bigint") return item;
      mark = mark || newMark();
      return mark + item;
    });
  } catch (error) {
    throw new CroniumError(`the value cannot be written as JSON: ${error.message}`, "value.invalid");
  }
  if (text === undefined) throw new CroniumError(`${typeof value} cannot be written as JSON`, "value.invalid");
  return mark ? text.replace(new RegExp(`"${mark}(-?[0-9]+)"`, "g"), "$1") : text;
}

/** Send the words, return what a command line would have printed, throw what it would have complained about. */
function exchange(words) {
  for (const word of words) {
    if (typeof word !== "string") {
      throw new TypeError(`a key, a field and a variable's name are strings, not ${typeof word}`);
    }
    if (/\p{Surrogate}/u.test(word)) throw new CroniumError("the value holds an unpaired surrogate", "value.invalid");
  }
  const path = process.env.CRONIUM_SOCKET;
  if (!path) throw new CroniumError("cronium works only inside a job: CRONIUM_SOCKET is not set", "supervisor.gone");
  const answer = askWorker({ path, words });
  if (answer.failure) throw new CroniumError(answer.failure, "supervisor.gone");
  if (answer.status === 0) return answer.stdout;
  const message = answer.stderr.trim().split("\nUsage: ")[0];
  throw new CroniumError(message.replace(/^Error: /, ""), answer.code);
}

let worker;

function askWorker(request) {
  const { receiveMessageOnPort } = require("worker_threads");
  worker = worker || startWorker();
  const before = Atomics.load(worker.answered, 0);
  worker.port.postMessage(request);
  Atomics.wait(worker.answered, 0, before);
  return receiveMessageOnPort(worker.port).message;
}

function startWorker() {
  const { MessageChannel, Worker } = require("worker_threads");
  const { port1, port2 } = new MessageChannel();
  const answered = new Int32Array(new SharedArrayBuffer(4));
  // No options and no environment of the script's: a worker of ours preloads nothing, whatever NODE_OPTIONS says.
  const thread = new Worker(`(${answerRequests})()`, {
    eval: true,
    execArgv: [],
    env: {},
    workerData: { port: port2, answered },
    transferList: [port2],
  });
  thread.unref();
  port1.unref();
  return { port: port1, answered };
}

/** What the worker runs. Its source text is all that gets there, so it uses nothing of this file. */
function answerRequests() {
  const { workerData } = require("worker_threads");
  const { connect } = require("net");
  const { port, answered } = workerData;

  function counted(bytes) {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return [length, bytes];
  }

  port.on("message", ({ path, words }) => {
    let isAnswered = false;
    const answer = (message) => {
      if (isAnswered) return;
      isAnswered = true;
      connection.destroy();
      port.postMessage(message);
      Atomics.add(answered, 0, 1);
      Atomics.notify(answered, 0);
    };
    const streams = { O: [], E: [] };
    const text = (kind) => Buffer.concat(streams[kind]).toString();
    let isConnected = false;
    let chunks = [];
    let size = 0;

    function readRecords() {
      if (size < 5) return;
      let received = chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
      while (received.length >= 5 && received.length >= 5 + received.readUInt32BE(1)) {
        const kind = String.fromCharCode(received[0]);
        const content = received.slice(5, 5 + received.readUInt32BE(1));
        received = received.slice(5 + content.length);
        if (kind === "I") connection.write(Buffer.alloc(4)); // a library has no standard input to give
        else if (kind === "O" || kind === "E") streams[kind].push(content);
        else if (kind === "X") {
          const code = content.toString("ascii", 1);
          answer({ status: content[0], code, stdout: text("O"), stderr: text("E") });
        }
      }
      chunks = [received];
      size = received.length;
      wanted = size < 5 ? 5 : 5 + received.readUInt32BE(1);
    }

    let wanted = 5;
    const connection = connect(path);
    connection.on("connect", () => {
      isConnected = true;
      const count = Buffer.alloc(4);
      count.writeUInt32BE(words.length);
      const bytes = words.map((word) => counted(Buffer.from(word)));
      connection.write(Buffer.concat([Buffer.from("CRH1"), count, ...[].concat(...bytes)]));
    });
    connection.on("data", (chunk) => {
      chunks.push(chunk);
      size += chunk.length;
      if (size >= wanted) readRecords();
    });
    connection.on("error", (error) => {
      if (!isConnected) answer({ failure: `no supervisor answers at CRONIUM_SOCKET: ${error.code}` });
    });
    connection.on("close", () => answer({ failure: "the supervisor of this execution is gone" }));
  });
}

/** What `require("cronium")` is: the functions on one object, which `new cronium()` gives as well. */
function cronium() {
  return cronium;
}

module.exports = cronium;
module.exports.CroniumError = CroniumError;
module.exports.input = input;
module.exports.output = output;
module.exports.getVariable = getVariable;
module.exports.get_variable = getVariable;
module.exports.setVariable = setVariable;
module.exports.set_variable = setVariable;
module.exports.deleteVariable = deleteVariable;
module.exports.delete_variable = deleteVariable;
module.exports.incrementVariable = incrementVariable;
module.exports.increment_variable = incrementVariable;
module.exports.appendVariable = appendVariable;
module.exports.append_variable = appendVariable;
module.exports.event = event;
module.exports.progress = progress;
module.exports.summary = summary;
module.exports.executeToolAction = executeToolAction;
module.exports.execute_tool_action = executeToolAction;
module.exports.sendEmail = sendEmail;
module.exports.sendSlackMessage = sendSlackMessage;
module.exports.sendDiscordMessage = sendDiscordMessage;
module.exports.getCondition = getCondition;
module.exports.get_condition = getCondition;
module.exports.setCondition = setCondition;
module.exports.set_condition = setCondition;
module.exports.cronium = cronium; // as a named export, which node finds in this form of assignment only

/* The same functions, returning promises: for scripts that write `.then`. */
const promises = Object.create(null);
for (const [name, value] of Object.entries(cronium)) {
  if (typeof value === "function" && name !== "CroniumError" && name !== "cronium") {
    promises[name] = async (...words) => value(...words);
  }
}
module.exports.promises = promises;

if (!("cronium" in globalThis)) {
  Object.defineProperty(globalThis, "cronium", { value: module.exports, writable: true, configurable: true });
}

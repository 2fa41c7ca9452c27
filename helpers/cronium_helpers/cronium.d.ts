/** The helpers for Node scripts. A global inside a job, and `require("cronium")`. Calls return at once; `await` is harmless. */

/** `new cronium()` is the module itself. */
declare class cronium {
  input: typeof cronium.input;
  output: typeof cronium.output;
  getVariable: typeof cronium.getVariable;
  setVariable: typeof cronium.setVariable;
  deleteVariable: typeof cronium.deleteVariable;
  incrementVariable: typeof cronium.incrementVariable;
  appendVariable: typeof cronium.appendVariable;
  event: typeof cronium.event;
  setCondition: typeof cronium.setCondition;
  getCondition: typeof cronium.getCondition;
  progress: typeof cronium.progress;
  summary: typeof cronium.summary;
  executeToolAction: typeof cronium.executeToolAction;
  sendEmail: typeof cronium.sendEmail;
  sendSlackMessage: typeof cronium.sendSlackMessage;
  sendDiscordMessage: typeof cronium.sendDiscordMessage;
}

declare namespace cronium {
  /** What a helper returns. Integers beyond ±(2^53 - 1) are BigInt, so that none loses a digit. */
  type Json = null | boolean | number | bigint | string | Json[] | { [key: string]: Json };

  interface Event {
    id: Json;
    name: Json;
    type: Json;
    trigger: Json;
    version: Json;
    executionId: Json;
    jobId: Json;
    /** null on the local machine. */
    server: null | { name: string; address: string; user: Json; port: Json; [key: string]: any };
    user: Json;
    startTime: Json;
    metadata: Json;
    /** The same as `id`, `name`, `type` and `user`. */
    eventId: Json;
    eventName: Json;
    eventType: Json;
    userId: Json;
    /** The manifest's. */
    environment: { [name: string]: string };
    /** Whatever else came with the event. */
    [key: string]: any;
  }

  /** A call failed. `code` is stable, for instance `input.key_not_found`; the message is one sentence. */
  class CroniumError extends Error {
    constructor(message: string, code: string);
    readonly code: string;
  }

  /** The whole input, null if there is none. */
  function input<T = any>(): T;
  /** One value of the input: an exact key, else a path like `config.hosts.0`. Throws when there is none. */
  function input<T = any>(key: string): T;

  /** Set the whole output. */
  function output(value: unknown): void;
  /** Set one key of the output and keep the others. */
  function output(key: string, value: unknown): void;

  /** A variable's value; `fallback`, else null, when there is no variable of that name. */
  function getVariable<T = any>(name: string, fallback?: T): T;
  /** Set a variable for this script, for the result and for the jobs after it. */
  function setVariable(name: string, value: unknown): void;

  /** Remove a variable. Throws when there is none. */
  function deleteVariable(name: string): void;
  /** Add a number to a variable, which begins at 0, in one step; its new value. */
  function incrementVariable(name: string, by?: number | bigint): number | bigint;
  /** Put a text behind a variable's, which begins empty, in one step. */
  function appendVariable(name: string, text: string): void;

  /** The event that this execution belongs to; what is unknown is null. */
  function event(): Event;
  /** One field of the event, or a path like `metadata.region`. */
  function event<T = any>(field: string): T;

  /** Decide what the workflow does after this job. */
  function setCondition(condition: boolean): void;

  /** What was decided, null when nothing was. */
  function getCondition(): boolean | null;

  /** Say how far the script is, from 0 to 100, and what it does. */
  function progress(percent: number, text?: string): void;
  /** Say what came of it, as Markdown of at most 64 KiB, in place of what was said before. */
  function summary(text: string): void;

  /** Have the platform do something, at most once, and return what it answers. In API mode only. */
  function executeToolAction<T = any>(tool: string, action: string, params?: { [key: string]: unknown }): T;

  function sendEmail<T = any>(message: { to: string | string[]; subject: string; body: string; [key: string]: unknown }): T;
  function sendSlackMessage<T = any>(message: { channel: string; text: string; [key: string]: unknown }): T;
  function sendDiscordMessage<T = any>(message: { channelId: string; content: string; [key: string]: unknown }): T;

  const execute_tool_action: typeof executeToolAction;
  const get_variable: typeof getVariable;
  const set_variable: typeof setVariable;
  const delete_variable: typeof deleteVariable;
  const increment_variable: typeof incrementVariable;
  const append_variable: typeof appendVariable;
  const set_condition: typeof setCondition;
  const get_condition: typeof getCondition;

  /** The same functions, returning promises. */
  namespace promises {
    function input<T = any>(key?: string): Promise<T>;
    function output(value: unknown): Promise<void>;
    function output(key: string, value: unknown): Promise<void>;
    function getVariable<T = any>(name: string, fallback?: T): Promise<T>;
    function setVariable(name: string, value: unknown): Promise<void>;
    function deleteVariable(name: string): Promise<void>;
    function incrementVariable(name: string, by?: number | bigint): Promise<number | bigint>;
    function appendVariable(name: string, text: string): Promise<void>;
    function event<T = Event>(field?: string): Promise<T>;
    function setCondition(condition: boolean): Promise<void>;
    function getCondition(): Promise<boolean | null>;
    function progress(percent: number, text?: string): Promise<void>;
    function summary(text: string): Promise<void>;
    function executeToolAction<T = any>(tool: string, action: string, params?: { [key: string]: unknown }): Promise<T>;
    function sendEmail<T = any>(message: { [key: string]: unknown }): Promise<T>;
    function sendSlackMessage<T = any>(message: { [key: string]: unknown }): Promise<T>;
    function sendDiscordMessage<T = any>(message: { [key: string]: unknown }): Promise<T>;

    const execute_tool_action: typeof executeToolAction;
    const get_variable: typeof getVariable;
    const set_variable: typeof setVariable;
    const delete_variable: typeof deleteVariable;
    const increment_variable: typeof incrementVariable;
    const append_variable: typeof appendVariable;
    const set_condition: typeof setCondition;
    const get_condition: typeof getCondition;
  }
}

export = cronium;
export as namespace cronium;

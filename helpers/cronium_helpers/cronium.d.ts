/** The helpers for Node scripts. A global inside a job, and `require("cronium")`. Calls return at once; `await` is harmless. */

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
    server: Json;
    user: Json;
    startTime: Json;
    metadata: Json;
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

  /** The event that this execution belongs to; what is unknown is null. */
  function event(): Event;
  /** One field of the event, or a path like `metadata.region`. */
  function event<T = any>(field: string): T;

  /** Decide what the workflow does after this job. */
  function setCondition(condition: boolean): void;

  /** Have the platform do something, at most once, and return what it answers. In API mode only. */
  function executeToolAction<T = any>(tool: string, action: string, params?: { [key: string]: unknown }): T;

  const execute_tool_action: typeof executeToolAction;
  const get_variable: typeof getVariable;
  const set_variable: typeof setVariable;
  const set_condition: typeof setCondition;
}

export = cronium;
export as namespace cronium;

// The requests to our server: JSON, server-sent events, the key, and what went wrong.

import {tabStore} from "./browser_store.js";

const KEY = "gpt2tg.key";

/** An answer that is an error, or no answer at all. */
export class ServerError extends Error {
  /** @param {string} message @param {number} status 0: the server did not answer @param {string|null} param */
  constructor(message, status, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }

  /** Whether the server did not answer. */
  get isAway() {
    return this.status === 0;
  }
}

let askForKey = async () => null;

/** @param {(wasWrong: boolean) => Promise<string|null>} ask asks the person for the key of the server */
export function setKeyDialog(ask) {
  askForKey = ask;
}

let asking = null;

/**
 * Ask for another key than the one that the server refused. Requests that fail at the same time ask once.
 * @param {string|null} refused
 */
async function keyAfter(refused) {
  if (tabStore.get(KEY) !== refused) return;
  asking ??= askForKey(refused !== null).finally(() => (asking = null));
  const given = await asking;
  if (given === null) throw new ServerError("The server wants a key. Load the page again to give it.", 401);
  tabStore.set(KEY, given.trim());
}

/** Send a request, with the key if there is one; ask for the key once the server wants it. */
async function send(path, {method = "GET", body, type, signal, keepalive} = {}) {
  for (;;) {
    const headers = {};
    const key = tabStore.get(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = type ?? "application/json";
    const content = body === undefined || type ? body : JSON.stringify(body);
    let answer;
    try {
      answer = await fetch(path, {method, headers, body: content, signal, keepalive, cache: "no-store"});
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server does not answer.", 0);
    }
    if (answer.status === 401 && !keepalive) {
      await keyAfter(key);
      continue;
    }
    if (!answer.ok) throw await errorOf(answer);
    return answer;
  }
}

async function errorOf(answer) {
  try {
    const {error} = await answer.json();
    return new ServerError(error.message, answer.status, error.param);
  } catch {
    return new ServerError(`The server answered with status ${answer.status}.`, answer.status);
  }
}

/**
 * Send a request and return its answer.
 * @param {string} path
 * @param {{method?: string, body?: any, type?: string, signal?: AbortSignal, keepalive?: boolean}} request
 *   `type`: the body is sent as it is, under this media type
 * @returns {Promise<any>}
 * @throws {ServerError}
 */
export async function ask(path, request) {
  const answer = await send(path, request);
  if (answer.status === 204) return null;
  try {
    return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The answer of the server broke off.", 0);
  }
}

/** @param {string} path @returns {Promise<Blob>} */
export async function download(path) {
  return (await send(path)).blob();
}

/**
 * Send a request and yield the events of its answer.
 * @param {string} path @param {any} body @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 */
export async function* stream(path, body, signal) {
  const answer = await send(path, {method: "POST", body, signal});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (signal.aborted) throw new DOMException("stopped", "AbortError");
        throw new ServerError("The connection to the server broke off.", 0);
      }
      if (part.done) return;
      const blocks = (rest + part.value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block
          .split(/\r?\n/)
          .filter(line => line.startsWith("data:"))
          .map(line => line.slice(5).trim());
        if (data.length && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// What the page asks of the server: the API that every client has, and the key for it.
import { recall, remember } from "./memory.js";

const STORED = "parley-key";
const GONE = "The server does not answer; see whether it still runs, then try again.";
const CUT = "The server went away before the answer was whole.";

let key = recall(STORED) ?? "";
let asking = null;
let askForKey = async () => "";

export function onMissingKey(ask) { askForKey = ask; }

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const isStop = (error) => error.name === "AbortError";

async function sent(path, body, signal) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (error) {
    if (isStop(error)) throw error;
    throw new ApiError(GONE);
  }
}

async function newKey() {
  let wasWrong = Boolean(key);
  do {
    key = await askForKey(wasWrong);
    wasWrong = true;
  } while (!/^[!-~]+$/.test(key)); // no header has anything else
  remember(STORED, key);
}

async function checked(path, body, signal) {
  for (;;) {
    const used = key;
    const reply = await sent(path, body, signal);
    if (reply.ok) return reply;
    if (reply.status === 401) {
      if (used !== key) continue; // another request has asked meanwhile
      asking ??= newKey().finally(() => { asking = null; });
      await asking;
      continue;
    }
    const said = await reply.json().catch(() => ({}));
    const error = said.error ?? {};
    throw new ApiError(error.message ?? `The server answered ${reply.status}.`, reply.status, error.code);
  }
}

export async function get(path) { return (await checked(path)).json(); }
export async function post(path, body) { return (await checked(path, body)).json(); }

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (isStop(error)) throw error;
      throw new ApiError(CUT);
    }
    if (part.done) throw new ApiError(CUT);
    const lines = (rest + part.value).split("\n\n");
    rest = lines.pop();
    for (const data of lines.map((each) => each.replace(/^data: /, ""))) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message, 500, event.error.code);
      yield event;
    }
  }
}

// Streams answers to `messages`, or what goes on from `prompt`; returns how many tokens were written.
export async function stream(body, onPiece, signal) {
  const path = body.messages ? "/v1/chat/completions" : "/v1/completions";
  const reply = await checked(path, { ...body, stream: true, stream_options: { include_usage: true } }, signal);
  let tokens = null;
  for await (const event of events(reply)) {
    for (const each of event.choices) onPiece(each.index, each.delta?.content ?? each.text ?? "", each.finish_reason);
    tokens = event.usage?.completion_tokens ?? tokens;
  }
  return tokens;
}

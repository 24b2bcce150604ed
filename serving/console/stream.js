// Answers of the server: JSON, and server-sent events of a POST, which EventSource cannot send.

import { visible } from "/shown.js";

export class Refused extends Error {
  constructor({ code, message, request_id }) {
    super(`${message} (${code}, request ${request_id})`);
  }
}

// Yields {kind, data} until the server ends the stream, or `signal` does.
export async function* events(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      const blocks = buffer.split("\n\n");
      buffer = blocks.pop();
      for (const block of blocks) yield parse(block);
    }
  } finally {
    await reader.cancel().catch(() => {});  // it has failed already where the stream was aborted
  }
}

export async function refusal(answer) {
  const text = await answer.text();
  try {
    return new Refused(parsed(text));
  } catch {
    return new Error(`The server answered ${answer.status}: ${visible(text.slice(0, 200))}`);
  }
}

function parse(block) {
  const fields = { event: "message", data: [] };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("event:")) fields.event = value;
    if (line.startsWith("data:")) fields.data.push(value);
  }
  return { kind: fields.event, data: parsed(fields.data.join("\n")) };
}

// JSON whose texts can be shown.
export function parsed(text) {
  return JSON.parse(text, (_, value) => (typeof value === "string" ? visible(value) : value));
}

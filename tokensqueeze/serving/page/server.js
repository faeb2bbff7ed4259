// The server's API: the key, refusals in words, and one streamed chat completion.

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** What went wrong, in words for a person. */
export class Failure extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

/** The key, for as long as the tab is open. */
export const key = {
  value: null,
  load() {
    this.value = sessionStorage.getItem("key");
    const handed = new URLSearchParams(location.hash.slice(1)).get("key");
    if (handed === null) return;
    // Neither the history nor a copied address shall hold it.
    history.replaceState(null, "", location.pathname + location.search);
    this.keep(handed);
  },
  keep(value) {
    this.value = value.trim();
    sessionStorage.setItem("key", this.value);
  },
};

export async function send(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure("The server can't be reached. Is it still running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { error } = (await response.json().catch(() => null)) ?? {};
  // The server's own words for this one are meant for programs.
  if (error?.code === "invalid_api_key") return new Failure("That is not one of this server's keys.", response.status);
  const lead = { 401: "The key was refused.", 429: "Too many requests at once.", 503: "The server can't answer now." }[response.status];
  const wait = response.headers.get("Retry-After");
  const words = [lead, error?.message ?? `The server answered with status ${response.status}.`];
  if (wait) words.push(`Try again in ${plural(Number(wait), "second")}.`);
  return new Failure(words.filter(Boolean).join(" "), response.status);
}

/** Yields the chunks of one streamed chat completion. */
export async function* streamed(body, signal) {
  const response = await send("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Failure("The connection broke off before the end of the answer.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line.startsWith("data:"))) {
      const data = line.slice("data:".length).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure(`The server broke off: ${chunk.error.message}`);
      yield chunk;
    }
  }
}

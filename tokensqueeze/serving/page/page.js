// Asks one question of two models, shows both streams with their token counts, and says which was shorter.

import { boxes, Column, PHASES } from "./column.js";
import { Failure, key, plural, send } from "./server.js";

const REPAINT_MS = 100; // Painting more often would take from the models that run on the same CPU.
const SMALLEST_SCALE = 64; // tokens
const EXAMPLES = [
  "Mia has 47 eggs. Mia buys 14 eggs and then buys 14. Mia loses 10 eggs and then buys 3. How many eggs?",
  "Ann has 48 apples. Ann buys 6 apples and then loses 26 and then loses 4. Ann buys 30 apples and then loses 9. How many apples?",
  "Ben has 51 books. Ben loses 43 books. Ben loses 4 books and then loses 2. Ben buys 54 books and then loses 9. How many books?",
  "Mia has 6 coins. Mia buys 19 coins. Mia loses 7 coins and then buys 8. How many coins?",
];

const byId = (id) => document.getElementById(id);

let models = [];
let columns = [];
let running = null; // AbortController of the question under way
let lastQuestion = "";

function paint() {
  const longest = Math.max(...columns.map((column) => column.total));
  // While tokens come, the scale grows in doublings: bars that always filled the width would show nothing.
  const growing = Math.max(SMALLEST_SCALE, 2 ** Math.ceil(Math.log2(longest + 1)));
  for (const column of columns) column.paint(running ? growing : longest || 1);
}

async function ask() {
  if (running) return;
  lastQuestion = byId("question").value.trim();
  const seed = numberIn("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0];
  const request = {
    messages: [{ role: "user", content: lastQuestion }],
    temperature: numberIn("temperature"),
    thinking_budget: numberIn("budget"),
    seed,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  running = new AbortController();
  say("", "");
  setRunning(true);
  const repaint = setInterval(paint, REPAINT_MS);
  try {
    await Promise.all(columns.map((column) => column.ask(request, running.signal)));
  } finally {
    clearInterval(repaint);
    running = null;
    setRunning(false);
    paint();
  }
  judge(seed);
  byId("again").hidden = false;
  if (columns.some((column) => column.error?.status === 401)) askForKey("");
}

/** What a number field holds; nothing, which JSON leaves out, if it is empty. */
function numberIn(id) {
  return byId(id).value === "" ? undefined : byId(id).valueAsNumber;
}

function setRunning(now) {
  document.body.classList.toggle("running", now);
  // Not `disabled`: who had just pressed one of them with the keyboard would lose their place.
  byId("stop").setAttribute("aria-disabled", String(!now));
  byId("again").setAttribute("aria-disabled", String(now));
  byId("race").hidden = false;
  for (const column of columns) column.select.disabled = now;
}

function judge(seed) {
  const named = columns.map((column) => ({ column, name: nameOf(column) }));
  const unfinished = named.filter(({ column }) => column.ended === null || !["stop", "length"].includes(column.phase));
  const tail = `Seed ${seed}.`;
  if (unfinished.length > 0) {
    const why = unfinished.map(({ column, name }) => `${name}: ${PHASES[column.phase]}`).join("; ");
    return say(columns.length > 1 ? "No verdict" : "No answer", `${why}. ${tail}`);
  }
  if (columns.length === 1) return say(`${named[0].name}: ${plural(columns[0].total, "token")}`, `${inSeconds(columns[0])}. ${tail}`);
  const [shorter, longer] = [...named].sort((a, b) => a.column.total - b.column.total);
  const equal = shorter.column.total === longer.column.total;
  const headline = equal
    ? `A tie: ${plural(shorter.column.total, "token")} each`
    : `${shorter.name}: ${plural(shorter.column.total, "token")}, ${longer.name}: ${longer.column.total.toLocaleString("en")}, ` +
      `× ${(shorter.column.total / longer.column.total).toFixed(2)}`;
  say(headline, `${inSeconds(shorter.column)} against ${inSeconds(longer.column)}. ${agreement()}${cuts(named)}${tail}`);
}

/** The model's name, with the side where both sides show the same one. */
function nameOf(column) {
  const twice = columns.filter((other) => other.model === column.model).length > 1;
  return twice ? `${column.model.id} (${column.side})` : column.model.id;
}

const inSeconds = (column) => `${column.seconds.toFixed(1)} s`;

/** Whether both gave the same boxed answer: being shorter is worth nothing where the answer is another. */
function agreement() {
  const given = columns.map((column) => boxes(column.answer).filter((part) => part.boxed).at(-1)?.text.trim());
  if (given.includes(undefined)) return "";
  return given[0] === given[1] ? `Both answer ${given[0]}. ` : `Their answers differ: ${given[0]} and ${given[1]}. `;
}

function cuts(named) {
  const cut = named.filter(({ column }) => column.phase === "length").map(({ name }) => name);
  return cut.length ? `Cut at the token limit: ${cut.join(", ")}. ` : "";
}

function say(headline, detail) {
  byId("verdict").querySelector(".headline").textContent = headline;
  byId("verdict").querySelector(".detail").textContent = detail;
}

/* ---------------------------------------------------------------- the page */

/** Asks the server for its models, which also tells whether it wants a key. */
async function open() {
  byId("problem").hidden = true;
  try {
    models = (await (await send("v1/models")).json()).data;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) return askForKey(key.value ? error.message : "");
    return complain(error.message);
  }
  byId("key-form").hidden = true;
  byId("ask-form").hidden = false;
  if (columns.length === 0) columns = models.length > 1 ? [new Column("left"), new Column("right")] : [new Column("left")];
  const withRole = (role) => models.find((model) => model.tokensqueeze?.role === role);
  columns[0].offer(models, withRole("base") ?? models[0]);
  columns[1]?.offer(models, withRole("squeezed") ?? models.find((model) => model !== columns[0].model));
  byId("columns").classList.toggle("single", columns.length === 1);
  for (const about of document.querySelectorAll(".both")) about.hidden = columns.length === 1;
  byId("columns").hidden = false;
  byId("title").textContent = columns.length > 1 ? "The same question, side by side" : "Ask the model";
  byId("budget-label").hidden = models.every((model) => model.tokensqueeze?.reasoning === false);
  byId("question").focus();
}

function askForKey(message) {
  byId("key-form").hidden = false;
  if (message) complain(message);
  byId("key").value = "";
  byId("key").focus();
}

function complain(message) {
  byId("problem").textContent = message;
  byId("problem").hidden = false;
}

function stop() {
  running?.abort();
}

byId("examples").append(
  ...EXAMPLES.map((question) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(Object.assign(document.createElement("span"), { textContent: question }));
    button.addEventListener("click", () => {
      if (running) return;
      byId("question").value = question;
      byId("ask-form").requestSubmit();
    });
    return button;
  }),
);
byId("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask-form").requestSubmit();
});
byId("again").addEventListener("click", () => {
  if (running) return;
  byId("question").value = lastQuestion;
  byId("ask-form").requestSubmit();
});
byId("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.keep(byId("key").value);
  open();
});
addEventListener("hashchange", () => {
  key.load();
  open();
});
key.load();
open();

// One side of the page: a model, what it writes, and its figures. What a model wrote only ever becomes text nodes.

import { Failure, plural, streamed } from "./server.js";

export const PHASES = {
  idle: "",
  waiting: "waiting for the first token",
  thinking: "thinking",
  answering: "answering",
  stop: "done",
  length: "cut at the token limit",
  stopped: "stopped",
  failed: "no answer",
};

export class Column {
  constructor(side) {
    const clone = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);
    this.side = side;
    this.node = clone("column-template");
    this.bar = clone("bar-template");
    this.node.id = side;
    this.bar.id = `${side}-bar`;
    document.getElementById("columns").append(this.node);
    document.getElementById("bars").append(this.bar);
    this.select = this.find("select");
    this.select.setAttribute("aria-label", `Model on the ${side}`);
    this.select.addEventListener("change", () => this.describe());
    this.reset("idle");
  }

  find(selector) {
    return this.node.querySelector(selector);
  }

  get model() {
    return this.models.find((model) => model.id === this.select.value);
  }

  get total() {
    return this.reasoningTokens + this.answerTokens;
  }

  get seconds() {
    return this.started === null ? 0 : ((this.ended ?? performance.now()) - this.started) / 1000;
  }

  /** Lets a person choose among the models; a choice that was made stays, if it is still there. */
  offer(models, first) {
    const chosen = models.find((model) => model.id === this.select.value) ?? first;
    this.models = models;
    this.select.replaceChildren(...models.map((model) => new Option(model.id, model.id, false, model === chosen)));
    this.describe();
  }

  /** Says what the chosen model is, and what a person may expect of it. */
  describe() {
    const facts = this.model.tokensqueeze ?? {};
    this.node.dataset.role = this.bar.dataset.role = facts.role ?? this.side;
    this.find("h2").textContent = { base: "Base", squeezed: "Squeezed" }[facts.role] ?? "Model";
    const words = [];
    if (facts.context_length) words.push(`context of ${plural(facts.context_length, "token")}`);
    if (facts.squeezed_length && facts.base_length) {
      words.push(`${facts.squeezed_length.toFixed(0)} tokens per answer in its evaluation, its base ${facts.base_length.toFixed(0)}`);
    }
    if (facts.reasoning === false) words.push("does not think before it answers");
    this.find(".about").textContent = words.join("; ");
    this.find(".reasoning .text").setAttribute("aria-label", `Reasoning of ${this.model.id}`);
    this.bar.querySelector(".name").textContent = this.model.id;
  }

  reset(phase) {
    Object.assign(this, { phase, reasoning: "", answer: "", reasoningTokens: 0, answerTokens: 0, budgetMet: false });
    Object.assign(this, { started: null, ended: null, error: null });
    this.find(".reasoning .text").replaceChildren(new Text());
    this.find(".answer .text").replaceChildren();
  }

  async ask(request, signal) {
    this.reset("waiting");
    this.started = performance.now();
    const body = { ...request, model: this.model.id };
    if (this.model.tokensqueeze?.reasoning === false) delete body.thinking_budget;
    try {
      let finish = null;
      for await (const chunk of streamed(body, signal)) finish = this.take(chunk) ?? finish;
      this.phase = finish === "length" ? "length" : "stop";
    } catch (error) {
      if (signal.aborted) this.phase = "stopped";
      else if (error instanceof Failure) Object.assign(this, { phase: "failed", error });
      else throw error;
    } finally {
      this.ended = performance.now();
    }
  }

  /** Takes one chunk in and returns why the answer ended, if it did. */
  take({ choices, usage }) {
    const [choice] = choices;
    if (choice?.delta.reasoning_content) {
      this.phase = "thinking";
      this.reasoning += choice.delta.reasoning_content;
    }
    if (choice?.delta.content) {
      this.phase = "answering";
      this.answer += choice.delta.content;
    }
    this.budgetMet ||= choice?.thinking_closed_at_budget === true;
    if (usage) {
      this.reasoningTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
      this.answerTokens = usage.completion_tokens_details?.answer_tokens ?? usage.completion_tokens;
    }
    return choice?.finish_reason;
  }

  /** Shows the state; `scale` is the number of tokens that fills the bar. */
  paint(scale) {
    this.find(".reasoning-tokens").textContent = this.reasoningTokens.toLocaleString("en");
    this.find(".answer-tokens").textContent = this.answerTokens.toLocaleString("en");
    this.find(".seconds").textContent = this.seconds.toFixed(1);
    this.find(".speed").textContent = this.total ? (this.total / this.seconds).toFixed(0) : "–";
    const budget = this.budgetMet ? "; its thinking was closed at the budget" : "";
    this.find(".phase").textContent = PHASES[this.phase] + budget;
    this.node.dataset.phase = this.phase;
    this.find(".error").textContent = this.error?.message ?? "";
    this.find(".error").hidden = this.error === null;
    this.find(".reasoning").hidden = this.reasoning === "";
    this.find(".answer").hidden = this.started === null;
    showReasoning(this.find(".reasoning .text"), this.reasoning);
    this.find(".answer .text").replaceChildren(...withBoxes(this.answer || (this.ended ? "" : "…")));
    this.bar.querySelector(".total").textContent = plural(this.total, "token");
    this.bar.querySelector(".whole").style.transform = `scaleX(${this.total / scale})`;
    this.bar.querySelector(".reasoning").style.transform = `scaleX(${this.reasoningTokens / scale})`;
  }
}

/** Appends what is new, so that a long thought costs no more at its end; who reads at the end is kept there. */
function showReasoning(box, text) {
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 24;
  box.firstChild.appendData(text.slice(box.firstChild.length));
  if (atEnd) box.scrollTop = box.scrollHeight;
}

/** Splits an answer into text and the contents of each `\boxed{…}`, braces inside it counted. */
export function boxes(text) {
  const parts = [];
  let from = 0;
  for (const { index, 0: opening } of text.matchAll(/\\boxed\s*\{/g)) {
    if (index < from) continue;
    const start = index + opening.length;
    let end = start;
    for (let depth = 1; end < text.length; end++) {
      if (text[end] === "{") depth++;
      if (text[end] === "}" && --depth === 0) break;
    }
    if (end === text.length) break; // Its end has not come yet.
    parts.push({ text: text.slice(from, index) }, { text: text.slice(start, end), boxed: true });
    from = end + 1;
  }
  return [...parts, { text: text.slice(from) }];
}

function withBoxes(answer) {
  return boxes(answer).map(({ text, boxed }) => {
    if (!boxed) return new Text(text);
    const mark = document.createElement("mark");
    mark.textContent = text;
    return mark;
  });
}

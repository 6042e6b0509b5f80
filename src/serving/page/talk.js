// A talk of any length: answers as they come, several where wanted, and what was said before as the model is shown it.
import { Answer, isWhole, voteBar, write } from "./answers.js";
import { button, field, find, line, make, sendsOnEnter } from "./dom.js";
import { recall, remember } from "./memory.js";

const STORED = "parley-talk-2";

export class Talk {
  constructor(settings, options) {
    Object.assign(this, { settings, options, exchanges: [], stopper: null, cleared: [] });
    this.thread = make("div", { role: "log", "aria-label": "The talk", "aria-live": "off" });
    this.area = make("textarea", { rows: 3 });
    this.system = make("textarea", { rows: 2, placeholder: "nothing, or what the server says" });
    this.note = line();
    this.send = button("Send", () => this.press(), "main");
    sendsOnEnter(this.area, () => { if (!this.stopper) this.press(); });
    this.tools = [
      button("Retry", () => this.run(this.exchanges.at(-1))),
      button("Clear", () => this.clear()),
      button("Download", () => this.download()),
    ];
    this.undo = button("Undo", () => this.restore());
    this.undo.hidden = true;
    find("talk").append(
      this.thread,
      make("div", { className: "compose" },
        field("Your message (Enter sends, Shift+Enter is a new line)", this.area),
        make("div", { className: "row" }, this.send, ...this.tools, this.undo), this.note.element),
      make("details", {}, make("summary", {}, "What the model is told first"), field("System", this.system)),
    );
    for (const area of [this.area, this.system]) area.addEventListener("input", () => this.keep());
    this.recall();
    this.update();
  }

  keep() {
    const exchanges = this.exchanges.map(({ question, answers, chosen, sent, voted }) =>
      ({ question, sent, voted, answers: answers.map(({ text, model, options, finish }) => ({ text, model, options, finish })), chosen: answers.indexOf(chosen) }));
    remember(STORED, { draft: this.area.value, system: this.system.value, exchanges });
  }

  recall() {
    const kept = recall(STORED);
    if (!Array.isArray(kept?.exchanges)) return;
    this.area.value = kept.draft;
    this.system.value = kept.system;
    for (const { question, answers, chosen, sent, voted } of kept.exchanges) {
      const exchange = Object.assign(this.add(question), { sent, voted });
      this.draw(exchange);
      this.place(exchange, answers);
      answers.forEach(({ text, finish }, number) => exchange.answers[number].add(text, finish ?? "stopped"));
      this.offer(exchange, exchange.answers[chosen]);
    }
    this.keep();
  }

  update() {
    this.send.textContent = this.stopper ? "Stop" : "Send";
    this.send.classList.toggle("main", !this.stopper);
    for (const tool of this.tools) tool.disabled = Boolean(this.stopper) || !this.exchanges.length;
    for (const { element } of this.exchanges) for (const each of element.querySelectorAll("button.edit")) each.disabled = Boolean(this.stopper);
  }

  press() {
    if (this.stopper) { this.stopper.abort(); return; }
    const question = this.area.value;
    if (!question.trim()) { this.note.fail("There is nothing to send yet; type something."); return; }
    if (!this.options.areValid()) return;
    this.area.value = "";
    this.undo.hidden = true;
    this.run(this.add(question));
  }

  add(question) {
    const exchange = { question, answers: [], chosen: null, sent: [], voted: false, element: make("div", { className: "exchange" }) };
    this.exchanges.push(exchange);
    this.thread.append(exchange.element);
    return exchange;
  }

  // What was said, from an exchange on and up to another's question.
  messages(from = 0, until = null) {
    const found = this.system.value.trim() ? [{ role: "system", content: this.system.value }] : [];
    for (const exchange of this.exchanges.slice(from)) {
      const question = { role: "user", content: exchange.question };
      if (exchange === until) return [...found, question];
      const answer = exchange.chosen?.text ?? "";
      if (answer.trim()) found.push(question, { role: "assistant", content: answer }); // what failed was never said
    }
    return found;
  }

  async run(exchange) {
    this.note.say("");
    this.stopper = new AbortController();
    Object.assign(exchange, { answers: [], chosen: null, voted: false });
    const body = { model: find("model").value, ...this.options.read() };
    const place = this.exchanges.indexOf(exchange);
    this.draw(exchange);
    this.update();
    this.keep();
    try {
      for (let from = 0; ; from += 1) {
        const messages = this.messages(from, exchange);
        exchange.sent = messages;
        const { model, ...options } = body;
        this.place(exchange, Array(this.options.count).fill({ model, options }));
        const error = await write(exchange.answers, { ...body, messages }, this.stopper.signal);
        if (error?.code === "context_length_exceeded" && from < place) continue; // the oldest exchange no longer fits
        if (from) this.note.say(`The model was not shown the first ${from === 1 ? "exchange" : `${from} exchanges`}: there is no room.`);
        break;
      }
    } finally {
      this.stopper = null;
      this.offer(exchange, exchange.answers[0]);
      this.update();
      this.keep();
      exchange.element.scrollIntoView({ block: "end" });
    }
  }

  // Room for answers, each of a model with its options.
  place(exchange, origins) {
    exchange.answers = origins.map((origin, number) => new Answer(origins.length > 1 ? `Answer ${number + 1}` : "", origin));
    exchange.chosen = exchange.answers[0];
    exchange.space.replaceChildren(...exchange.answers.map(({ element }) => element));
    exchange.element.scrollIntoView({ block: "nearest" });
  }

  draw(exchange) {
    exchange.space = make("div", { className: "answers" });
    const edit = button("Edit", () => this.edit(exchange), "small edit");
    exchange.element.replaceChildren(
      make("div", { className: "mine" }, make("p", { className: "text" }, exchange.question)),
      make("div", { className: "row mine-tools" }, edit), exchange.space);
  }

  // Of several answers one goes on, and two may be voted between.
  offer(exchange, chosen) {
    const { answers, space } = exchange;
    if (answers.length < 2) return;
    const mark = (answer) => {
      exchange.chosen = answer;
      this.keep();
      for (const each of answers) {
        each.element.classList.toggle("chosen", each === answer);
        each.pick.setAttribute("aria-pressed", String(each === answer));
        each.pick.textContent = each === answer ? "The talk goes on with this" : "Go on with this";
      }
    };
    for (const each of answers) {
      each.pick = button("Go on with this", () => mark(each), "small");
      each.element.append(make("div", {}, each.pick));
    }
    mark(chosen);
    if (!this.settings.votes || exchange.voted || !answers.every(isWhole)) return;
    space.after(voteBar(answers, exchange.sent, (better) => {
      exchange.voted = true;
      if (better) mark(better);
      this.keep();
    }));
  }

  edit(exchange) {
    const area = make("textarea", { rows: 3, value: exchange.question, "aria-label": "Your message" });
    const again = () => {
      if (!area.value.trim() || !this.options.areValid()) return;
      const gone = this.exchanges.splice(this.exchanges.indexOf(exchange) + 1);
      for (const { element } of gone) element.remove();
      exchange.question = area.value;
      this.run(exchange);
    };
    sendsOnEnter(area, again);
    const [mine, tools] = exchange.element.children;
    const before = [[...mine.childNodes], [...tools.childNodes]];
    mine.classList.add("editing");
    mine.replaceChildren(area);
    tools.replaceChildren(button("Ask again", again, "small edit"), button("Leave it", () => {
      mine.classList.remove("editing");
      mine.replaceChildren(...before[0]);
      tools.replaceChildren(...before[1]);
    }, "small"));
    area.focus();
  }

  clear() {
    this.cleared = this.exchanges;
    this.exchanges = [];
    this.thread.replaceChildren();
    this.undo.hidden = false;
    this.note.say("The talk is cleared.");
    this.update();
    this.keep();
    this.area.focus();
  }

  restore() {
    this.exchanges = this.cleared;
    this.thread.replaceChildren(...this.exchanges.map(({ element }) => element));
    this.undo.hidden = true;
    this.note.say("");
    this.update();
    this.keep();
  }

  // One line, as a file of conversations has it.
  download() {
    const talk = `${JSON.stringify({ messages: this.messages() })}\n`;
    const address = URL.createObjectURL(new Blob([talk], { type: "application/json" }));
    make("a", { href: address, download: "talk.jsonl" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }
}

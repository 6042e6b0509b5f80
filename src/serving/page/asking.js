// A text to ask about, typed or a row of the server's data, and the button that asks or stops.
import { get } from "./api.js";
import { button, field, line, make, sendsOnEnter } from "./dom.js";

export class Asking {
  // `run(text, signal)` does the asking; `onTake(row)` hears of a row that was taken; `settings.rows` is how many there are.
  constructor({ label, verb, settings, options, run, onTake = () => {}, controls = [] }) {
    Object.assign(this, { options, run, onTake, verb, count: settings.rows, stopper: null, references: [], asked: "" });
    this.area = make("textarea", { rows: 6 });
    this.note = line();
    this.send = button(verb, () => this.press(), "main");
    this.result = make("div");
    sendsOnEnter(this.area, () => { if (!this.stopper) this.press(); });
    this.element = make("div", {},
      settings.rows ? this.rowPicker() : null,
      field(label, this.area),
      controls.length ? make("div", { className: "row end" }, ...controls) : null,
      make("div", { className: "row" }, this.send, make("span", { className: "quiet small-print" }, "Enter asks, Shift+Enter is a new line")),
      this.note.element, this.result);
  }

  rowPicker() {
    this.number = make("input", { type: "number", min: 0, max: this.count - 1, step: 1, value: 0 });
    const go = (number) => this.take(Math.min(Math.max(number, 0), this.count - 1));
    const typed = () => {
      if (this.number.value && this.number.checkValidity()) go(Number(this.number.value));
      else this.note.fail(`There is no row ${this.number.value || "of that number"}; rows are 0 to ${this.count - 1}.`);
    };
    this.number.addEventListener("change", typed);
    return make("div", { className: "row end" },
      field(`Row, 0 to ${this.count - 1}`, this.number, "narrow row-number"),
      button("Take it", typed),
      button("Previous", () => go(Number(this.number.value) - 1)),
      button("Next", () => go(Number(this.number.value) + 1)),
      button("Any", () => go(Math.floor(Math.random() * this.count))));
  }

  async take(number) {
    this.number.value = String(number);
    try {
      const row = await get(`/page/rows/${number}`);
      if (this.number.value !== String(number)) return; // another was asked for meanwhile
      this.area.value = row.text;
      Object.assign(this, { references: row.references, asked: row.text });
      if (!this.stopper) this.result.replaceChildren(); // which was about another row
      this.onTake(row);
      this.note.say(`Row ${number} (${row.id})`);
    } catch (error) {
      this.note.fail(error.message);
    }
  }

  // What the data says is right, where the text is still a row's.
  known() {
    if (!this.references.length || this.area.value !== this.asked) return null;
    return make("article", { className: "answer" }, make("h2", { className: "quiet" }, "In the data"),
      ...this.references.map((text) => make("p", { className: "reference quiet" }, text)));
  }

  async press() {
    if (this.stopper) { this.stopper.abort(); return; }
    const text = this.area.value;
    if (!text.trim()) {
      this.result.replaceChildren();
      this.note.fail("There is nothing to ask yet; type something.");
      this.area.focus();
      return;
    }
    if (!this.options.areValid()) return;
    this.note.say("");
    this.stopper = new AbortController();
    this.send.textContent = "Stop";
    this.send.classList.remove("main");
    try {
      await this.run(text, this.stopper.signal);
    } finally {
      this.stopper = null;
      this.send.textContent = this.verb;
      this.send.classList.add("main");
    }
  }
}

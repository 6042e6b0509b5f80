// How to decode: one panel for all that is asked. What is left empty is as the server was told.
import { choice, field, find, make } from "./dom.js";
import { recall, remember } from "./memory.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: "any" }],
  ["top_p", "Top p", { min: 0.001, max: 1, step: "any" }],
  ["top_k", "Top k", { min: 0, step: 1 }],
  ["max_tokens", "Tokens at most", { min: 1, step: 1 }],
  ["min_tokens", "Tokens at least", { min: 0, step: 1 }],
  ["repetition_penalty", "Repetition penalty", { min: 0.01, max: 100, step: "any" }],
  ["seed", "Seed", { min: 0, step: 1 }],
];
const STORED = "parley-options";
const OF_A_PRESET = ["max_tokens", "min_tokens", "seed", "stop"]; // what no preset speaks of

export class Options {
  constructor(settings) {
    this.settings = settings;
    this.controls = new Map(NUMBERS.map(([name, , limits]) => [name, make("input", { type: "number", name, ...limits })]));
    this.answers = make("input", { type: "number", name: "answers", min: 1, max: settings.answers, step: 1, value: 1 });
    this.preset = choice([["", "none"], ...settings.presets.map(({ name }) => [name, name])], { name: "preset" });
    this.stop = make("textarea", { name: "stop", rows: 2, placeholder: "one a line, \\n for a line end" });
    this.shown = make("span", { className: "quiet" });
    this.note = make("p", { className: "quiet small-print" });
    find("options").append(
      make("summary", {}, "Decoding ", this.shown),
      make("div", { className: "grid" },
        field("Preset", this.preset),
        ...NUMBERS.map(([name, label]) => field(label, this.controls.get(name))),
        field("Answers", this.answers),
        field("Stop at", this.stop)),
      this.note,
    );
    this.all = new Map([...this.controls, ["answers", this.answers], ["preset", this.preset], ["stop", this.stop], ["model", find("model")]]);
    const kept = recall(STORED) ?? {};
    for (const [name, control] of this.all) if (canBe(control, kept[name])) control.value = kept[name];
    this.answers.addEventListener("input", () => this.letSample());
    for (const place of ["options", "model"]) find(place).addEventListener("input", () => { this.keep(); this.show(); });
    this.show();
  }

  keep() { remember(STORED, Object.fromEntries([...this.all].map(([name, control]) => [name, control.value]))); }

  // Several answers differ only where they are drawn at random.
  letSample() {
    const temperature = this.controls.get("temperature");
    const model = this.settings.models.find(({ id }) => id === find("model").value);
    if (this.answers.value > 1 && !temperature.value && !this.preset.value && !model?.samples) temperature.value = "0.8";
  }

  show() {
    const said = Object.entries(this.read()).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
    if (this.count > 1) said.push(`${this.count} answers`);
    const hint = this.settings.votes && this.count === 1 ? "; with 2 answers or more you can vote between them" : "";
    this.shown.textContent = (said.join(", ") || "as the server was told") + hint;
    const model = this.settings.models.find(({ id }) => id === find("model").value);
    this.note.textContent = model ? `What is left empty is as the server was told; for ${model.id}: ${model.does}.` : "";
  }

  get count() { return Math.max(1, Number(this.answers.value) || 1); }

  // What was filled in, by the API's names.
  read() {
    const found = this.preset.value ? { preset: this.preset.value } : {};
    for (const [name, control] of this.controls) if (control.value !== "") found[name] = Number(control.value);
    const stops = this.stop.value.split("\n").filter(Boolean).map((text) => text.replaceAll("\\n", "\n"));
    return stops.length ? { ...found, stop: stops } : found;
  }

  // The same with another preset: temperature and its like are then the preset's.
  withPreset(preset) {
    const kept = Object.entries(this.read()).filter(([name]) => OF_A_PRESET.includes(name));
    return { preset, ...Object.fromEntries(kept) };
  }

  // Whether all that is filled in can be; says so at the field where not.
  areValid() {
    const wrong = [...this.controls.values(), this.answers].find((control) => !control.checkValidity());
    if (!wrong) return true;
    find("options").open = true;
    wrong.reportValidity();
    return false;
  }
}

// Whether a control can have a value that an earlier page kept: its server may have had other models.
function canBe(control, value) {
  if (typeof value !== "string") return false;
  return !control.options || [...control.options].some((option) => option.value === value);
}

// One prompt to two models, or to one in two ways; blind where that is wanted.
import { Answer, voteBar, write } from "./answers.js";
import { Asking } from "./asking.js";
import { button, choice, field, find, make } from "./dom.js";
import { Prompting } from "./prompting.js";

export class Beside {
  constructor(settings, options) {
    Object.assign(this, { settings, options });
    const models = settings.models.map(({ id }) => [id, id]);
    const decodings = [["", "as above"], ...settings.presets.map(({ name }) => [name, name])];
    this.models = [0, 1].map(() => choice(models));
    this.models[1].selectedIndex = models.length > 1 ? 1 : 0;
    this.decodings = [0, 1].map(() => choice(decodings));
    this.prompting = new Prompting(settings.templates);
    this.blind = make("input", { type: "checkbox" });
    this.asking = new Asking({
      label: "Prompt", verb: "Ask both", settings, options,
      run: (text, signal) => this.run(text, signal),
      onTake: (row) => this.prompting.suit(row),
      controls: [
        field("First model", this.models[0]), field("First decoding", this.decodings[0]),
        field("Second model", this.models[1]), field("Second decoding", this.decodings[1]),
        this.prompting.field,
        make("label", { className: "check" }, this.blind, "Blind"),
      ],
    });
    find("beside").append(this.asking.element);
  }

  async run(text, signal) {
    const isBlind = this.blind.checked;
    const both = [0, 1].map((side) => {
      const preset = this.decodings[side].value;
      const model = this.models[side].value;
      return { model, name: preset ? `${model}, ${preset}` : model, options: preset ? this.options.withPreset(preset) : this.options.read() };
    });
    if (isBlind && Math.random() < 0.5) both.reverse();
    const answers = both.map((one, side) => new Answer(isBlind ? "AB"[side] : `${"AB"[side]}: ${one.name}`, one));
    const known = this.asking.known();
    const cards = make("div", { className: "answers" }, ...answers.map(({ element }) => element), ...(known ? [known] : []));
    this.asking.result.replaceChildren(cards);
    const body = this.prompting.body(text);
    const errors = await Promise.all(answers.map((each) => write([each], { model: each.model, ...body, ...each.options }, signal)));
    const unveil = () => answers.forEach((each, side) => { each.heading.textContent = `${"AB"[side]}: ${both[side].name}`; });
    const failed = errors.some((error) => error !== null);
    answers.forEach((each, side) => { each.title = "AB"[side]; });
    if (this.settings.votes && body.messages && !failed) cards.after(voteBar(answers, body.messages, unveil));
    else if (isBlind) cards.after(button("Show the names", unveil));
  }
}

// A dialogue, typed or a row of the data, in a template that models are trained on.
import { Answer, voteBar, write } from "./answers.js";
import { Asking } from "./asking.js";
import { choice, field, find, make } from "./dom.js";
import { filled } from "./prompting.js";

export class Summarise {
  constructor(settings, options) {
    Object.assign(this, { settings, options });
    const names = Object.keys(settings.templates).map((name) => [name, name]);
    this.template = choice(names);
    this.asking = new Asking({
      label: "Dialogue", verb: "Summarise", settings, options,
      run: (text, signal) => this.run(text, signal),
      controls: [field("Template", this.template)],
    });
    find("summarise").append(this.asking.element);
  }

  async run(text, signal) {
    const [model, options, count] = [find("model").value, this.options.read(), this.options.count];
    const messages = [{ role: "user", content: filled(this.settings.templates[this.template.value], text) }];
    const answers = Array.from({ length: count }, (_, number) =>
      new Answer(count > 1 ? `Summary ${number + 1}` : "Summary", { model, options }));
    const known = this.asking.known();
    const cards = make("div", { className: "answers" }, ...answers.map(({ element }) => element), ...(known ? [known] : []));
    this.asking.result.replaceChildren(cards);
    const error = await write(answers, { model, messages, ...options }, signal);
    if (this.settings.votes && count > 1 && !error) cards.after(voteBar(answers, messages));
  }
}

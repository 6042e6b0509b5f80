// One prompt through every decoding preset.
import { Answer, isWhole, voteBar, write } from "./answers.js";
import { Asking } from "./asking.js";
import { find, make } from "./dom.js";
import { Prompting } from "./prompting.js";

const AT_ONCE = 3; // a browser has six connections to a server, and there is more to do with them

export class Presets {
  constructor(settings, options) {
    Object.assign(this, { settings, options });
    this.prompting = new Prompting(settings.templates);
    this.asking = new Asking({
      label: "Prompt", verb: "Ask in every way", settings, options,
      run: (text, signal) => this.run(text, signal),
      onTake: (row) => this.prompting.suit(row),
      controls: [this.prompting.field],
    });
    const holding = "Of the decoding above, the numbers of tokens, the seed and what to stop at hold for every preset.";
    this.asking.result.before(make("p", { className: "quiet small-print" }, holding));
    if (!settings.presets.length) this.asking.note.fail("There are no presets here: they are in configs/ of the repository.");
    find("presets").append(this.asking.element);
  }

  async run(text, signal) {
    const model = find("model").value;
    const body = this.prompting.body(text);
    const groups = this.settings.presets.map((preset) => {
      const options = this.options.withPreset(preset.name);
      const count = Math.min(preset.answers, this.settings.answers);
      return Array.from({ length: count }, (_, number) => {
        const answer = new Answer(count > 1 ? `${preset.name} ${number + 1}` : preset.name, { model, options });
        answer.heading.after(make("p", { className: "quiet small-print" }, preset.does));
        return answer;
      });
    });
    const known = this.asking.known();
    const all = groups.flat();
    const cards = make("div", { className: "answers" }, ...all.map(({ element }) => element), ...(known ? [known] : []));
    this.asking.result.replaceChildren(cards);
    const waiting = groups.values();
    const work = async () => {
      for (const group of waiting) await write(group, { model, ...body, ...group[0].options }, signal);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    const whole = all.filter(isWhole);
    if (this.settings.votes && body.messages && whole.length > 1) cards.before(voteBar(whole, body.messages));
  }
}

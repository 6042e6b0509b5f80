// What a typed text is to the model: a message, a dialogue in a template, or a text that goes on.
import { choice, field } from "./dom.js";

export class Prompting {
  constructor(templates) {
    Object.assign(this, { templates, isChosen: false });
    const inTemplates = Object.keys(templates).map((name) => [`template ${name}`, `a dialogue, in the template ${name}`]);
    this.control = choice([["message", "a message"], ...inTemplates, ["text", "a text that goes on"]]);
    this.control.addEventListener("change", () => { this.isChosen = true; });
    this.field = field("The prompt is", this.control);
  }

  // A row with a dialogue is asked in a template, as models are trained, unless the user has chosen otherwise.
  suit(row) {
    const [first] = Object.keys(this.templates);
    if (!this.isChosen) this.control.value = row.is_dialogue && first ? `template ${first}` : "message";
  }

  // The part of a request's body that holds the text.
  body(text) {
    const kind = this.control.value;
    if (kind === "text") return { prompt: text };
    const content = kind === "message" ? text : filled(this.templates[kind.slice("template ".length)], text);
    return { messages: [{ role: "user", content }] };
  }
}

// Braces in a dialogue are its own: the template is filled once.
export function filled(template, dialogue) { return template.replace("{dialogue}", () => dialogue); }

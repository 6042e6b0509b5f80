// Answers as they come, and a person's vote between two of them.
import { ApiError, isStop, post, stream } from "./api.js";
import { button, choice, line, make } from "./dom.js";

const ENDS = { length: "cut at the token limit", stopped: "stopped" };

export const isWhole = ({ finish }) => finish === "stop" || finish === "length";

export class Answer {
  constructor(title, { model, options }) {
    Object.assign(this, { title, model, options, text: "", finish: null });
    this.heading = make("h2", {}, title);
    this.body = make("p", { className: "text" });
    this.note = line();
    this.element = make("article", { className: "answer", "aria-live": "polite", "aria-busy": "true" },
      title ? this.heading : null, this.body, this.note.element);
  }

  add(text, finish) {
    this.text += text;
    this.body.textContent = this.text;
    if (finish) this.end(finish);
  }

  end(finish, note = "") {
    this.finish = finish;
    this.element.setAttribute("aria-busy", "false");
    const said = [this.text.trim() ? "" : "nothing was said", ENDS[finish] ?? "", note].filter(Boolean).join(", ");
    this.note.say(said);
  }

  fail(error) {
    if (isStop(error)) { this.end("stopped"); return; }
    this.end("failed");
    this.note.fail(error.message);
  }
}

// Has answers written into cards, all of one request.
export async function write(answers, body, signal) {
  const began = performance.now();
  const asked = answers.length > 1 ? { ...body, n: answers.length } : body;
  try {
    const tokens = await stream(asked, (index, text, finish) => answers[index].add(text, finish), signal);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    for (const each of answers) each.end(each.finish, answers.length === 1 && tokens ? `${tokens} tokens, ${seconds} s` : "");
  } catch (error) {
    if (!(error instanceof ApiError) && !isStop(error)) throw error;
    for (const each of answers) if (!each.finish) each.fail(error);
    return error;
  }
  return null;
}

// Buttons to vote with between two answers to the same messages; `onDone` gets the better one, or none where both are.
export function voteBar(answers, messages, onDone = () => {}) {
  const said = answers.filter((each) => each.text.trim());
  const texts = new Set(said.map((each) => each.text.trim()));
  const note = line();
  if (texts.size < 2) {
    note.say("The answers do not differ: there is nothing to vote on.");
    onDone(null);
    return make("div", { className: "votes" }, note.element);
  }
  const labels = said.map((each, place) => [String(place), each.title || String(place + 1)]);
  const other = said.findIndex((each) => each.text.trim() !== said[0].text.trim());
  const sides = [0, other].map((place, side) =>
    choice(labels, { value: String(place), "aria-label": side ? "against" : "vote between" }));
  sides[1].value = String(other);
  const chosen = (side) => said[Number(sides[side].value)];
  const name = (side) => (said.length > 2 ? ["The first", "The second"][side] : chosen(side).title);

  const buttons = [
    button(`${name(0)} is better`, () => vote(0, 1)),
    button(`${name(1)} is better`, () => vote(1, 0)),
    button("The same", () => { finish(); note.say("Nothing was written: neither is better."); onDone(null); }),
  ];
  const finish = () => { if (said.length === 2) row.hidden = true; };
  async function vote(better, worse) {
    const [chosenOne, rejectedOne] = [chosen(better), chosen(worse)];
    const column = ({ text, model, options }) => ({ text, model, options });
    for (const each of buttons) each.disabled = true;
    try {
      await post("/votes", { messages, chosen: column(chosenOne), rejected: column(rejectedOne) });
      finish();
      onDone(chosenOne);
      note.done(`Written down: ${chosenOne.title} over ${rejectedOne.title}.`);
    } catch (error) {
      note.fail(error.message);
    }
    for (const each of buttons) each.disabled = false;
  }
  const row = make("div", { className: "row" }, ...(said.length > 2 ? [sides[0], "or", sides[1]] : []), ...buttons);
  return make("div", { className: "votes" }, row, note.element);
}

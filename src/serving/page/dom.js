// Elements, made without ever reading text as HTML.

export const find = (id) => document.getElementById(id);

// make("p", { className: "text" }, "words", child): properties, or attributes where the name has a dash or is `role`.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function field(label, control, className = "") {
  return make("label", { className: `field ${className}` }, `${label} `, control);
}

export function button(label, onclick, className = "") {
  return make("button", { type: "button", className, onclick }, label);
}

export function choice(values, properties = {}) {
  const options = values.map(([value, label]) => make("option", { value }, label));
  return make("select", properties, ...options);
}

// A line for what went wrong or was done, near where it was.
export function line() {
  const element = make("p", { className: "small-print", role: "status", hidden: true });
  const say = (text, className) => {
    element.textContent = text;
    element.className = `small-print ${className}`;
    element.hidden = !text;
  };
  return { element, fail: (text) => say(text, "trouble"), done: (text) => say(text, "done"), say: (text) => say(text, "quiet") };
}

// Enter sends; Shift+Enter is a new line, and Enter that ends an input method's word is not meant.
export function sendsOnEnter(area, send) {
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
}

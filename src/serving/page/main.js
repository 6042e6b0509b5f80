// Where everything begins: the settings, the key where one is asked for, and which part is shown.
import { get, onMissingKey } from "./api.js";
import { Beside } from "./beside.js";
import { find, make } from "./dom.js";
import { Options } from "./options.js";
import { Presets } from "./presets.js";
import { Summarise } from "./summarise.js";
import { Talk } from "./talk.js";

const PARTS = ["talk", "summarise", "beside", "presets"];

function show() {
  const wanted = location.hash.slice(1);
  const part = PARTS.includes(wanted) ? wanted : PARTS[0];
  for (const name of PARTS) find(name).hidden = name !== part;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  find("model-field").hidden = part === "beside"; // which has two
  scrollTo(0, 0);
}

onMissingKey((wasWrong) => new Promise((resolve) => {
  const [dialog, text] = [find("key"), find("key-text")];
  find("key-wrong").hidden = !wasWrong;
  text.value = "";
  dialog.oncancel = (event) => event.preventDefault();
  dialog.querySelector("form").onsubmit = (event) => {
    event.preventDefault();
    dialog.close();
    resolve(text.value.trim());
  };
  if (!dialog.open) dialog.showModal();
}));

async function begin() {
  try {
    const settings = await get("/page/settings");
    find("model").append(...settings.models.map(({ id }) => make("option", { value: id }, id)));
    const options = new Options(settings);
    for (const Part of [Talk, Summarise, Beside, Presets]) new Part(settings, options);
    find("shared").hidden = false;
    show();
    addEventListener("hashchange", show);
  } catch (error) {
    find("trouble").textContent = error.message;
    find("trouble").hidden = false;
  }
}

begin();

"use strict";
// Rows that hold what is typed stay.
for (const field of document.querySelectorAll("input[data-of]")) {
  const place = document.getElementById(field.dataset.of);
  const rows = [...place.querySelectorAll("[data-row]")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  field.hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    rows.forEach((row, i) => { row.hidden = !texts[i].includes(wanted); });
    if (wanted) for (const folded of place.querySelectorAll("details")) folded.open = true;
  });
}
// A click on a column's name sorts by it, a second one the other way round.
for (const head of document.querySelectorAll("th[data-sort]")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const falling = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const order = (a, b) => {
      if (!key(a) || !key(b)) return Number(!key(a)) - Number(!key(b)); // what a row lacks comes last
      const numbers = [Number(key(a)), Number(key(b))];
      const rise = numbers.some(Number.isNaN) ? key(a).localeCompare(key(b)) : numbers[0] - numbers[1];
      return falling ? -rise : rise;
    };
    body.append(...[...body.rows].sort(order));
  });
}
// A picture says what is nearest to the pointer, a line for every run.
for (const figure of document.querySelectorAll("figure[data-marks]")) {
  const picture = figure.querySelector("svg");
  const marks = JSON.parse(figure.dataset.marks);
  const label = document.createElement("div");
  label.className = "read";
  label.hidden = true;
  figure.append(label);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const scale = picture.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const y = (event.clientY - box.top) * scale;
    const nearest = marks.map(([name, color, points]) => {
      const distances = points.map(([markX, markY]) => Math.abs(markX - x) + 0.05 * Math.abs(markY - y));
      const line = document.createElement("div");
      line.style.color = color;
      line.textContent = `${name}: ${points[distances.indexOf(Math.min(...distances))][2]}`;
      return line;
    });
    label.replaceChildren(...nearest);
    label.hidden = !nearest.length;
    const left = event.clientX - figure.getBoundingClientRect().left;
    label.style.left = `${Math.max(0, Math.min(left + 12, box.width - label.offsetWidth))}px`;
    label.style.top = `${event.clientY - figure.getBoundingClientRect().top + 16}px`;
  });
  picture.addEventListener("pointerleave", () => { label.hidden = true; });
}
// A table that is wider than its place says so, until its end is seen; the keyboard can scroll it.
for (const place of document.querySelectorAll(".wide")) {
  const hint = place.parentNode.querySelector(".hint");
  const look = () => {
    const wider = place.scrollWidth > place.clientWidth + 1;
    const more = wider && place.scrollLeft + place.clientWidth < place.scrollWidth - 1;
    hint.hidden = !wider;
    hint.style.visibility = more ? "visible" : "hidden"; // its place is kept, so that nothing jumps
    place.classList.toggle("more", more);
    if (wider) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  };
  place.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(place);
}
// What is folded is printed as well.
addEventListener("beforeprint", () => { for (const each of document.querySelectorAll("details")) each.open = true; });

"use strict";
const find = (selector) => document.querySelector(selector);
const cards = [...document.querySelectorAll(".card")];
const views = [...document.querySelectorAll("[data-view]")];
const dialog = find("dialog"), box = find(".box");
let shown = cards, current = null, view = "overlay", withNames = true;

function make(tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className || "";
  return element;
}

function frame(segment) {
  box.hidden = !segment;
  if (!segment) return;
  ["left", "top", "width", "height"].forEach((side, i) => { box.style[side] = segment.box[i] + "%"; });
}

function legendEntry(segment) {
  const entry = make("li", ""), button = make("button", "");
  const swatch = make("i", "");
  swatch.style.background = segment.color;
  const score = segment.score === null ? "" : segment.score.toFixed(2);
  const area = (segment.area < 0.05 ? "<0.1" : segment.area.toFixed(1)) + " %";
  button.type = "button";
  button.title = segment.pixels + " pixels";
  button.append(swatch, make("span", segment.name), make("span", score, "number"), make("span", area, "number"));
  button.setAttribute("aria-pressed", "false");
  const pressed = () => find(".legend [aria-pressed=true]");
  button.addEventListener("click", () => {
    const chosen = pressed();
    if (chosen) chosen.setAttribute("aria-pressed", "false");
    if (chosen !== button) button.setAttribute("aria-pressed", "true");
    frame(chosen === button ? null : segment);
  });
  button.addEventListener("pointerenter", () => { if (!pressed()) frame(segment); });
  button.addEventListener("pointerleave", () => { if (!pressed()) frame(null); });
  entry.append(button);
  return entry;
}

function label(segment) {
  const element = make("span", segment.name);
  element.style.background = segment.color;
  element.style.color = segment.text;
  [element.dataset.x, element.dataset.y] = segment.label;
  return element;
}

// Labels stay inside the picture, and those of smaller segments give way.
function settle() {
  const picture = find(".picture"), taken = [];
  for (const element of find(".labels").children) {
    const width = element.offsetWidth / 2, height = element.offsetHeight / 2;
    const inside = (share, length, half) =>
      Math.max(Math.min(parseFloat(share) / 100 * length, length - half), half);
    const x = inside(element.dataset.x, picture.clientWidth, width);
    const y = inside(element.dataset.y, picture.clientHeight, height);
    element.style.left = x + "px";
    element.style.top = y + "px";
    const isFree = taken.every((other) =>
      Math.abs(other.x - x) > other.width + width || Math.abs(other.y - y) > other.height + height);
    element.style.visibility = isFree ? "" : "hidden";
    if (isFree) taken.push({ x, y, width, height });
  }
}

function refresh() {
  find(".picture .fill").hidden = view !== "overlay";
  find(".picture .edges").hidden = view === "image";
  find(".labels").hidden = view === "image" || !withNames;
  views.forEach((button) => button.setAttribute("aria-pressed", button.dataset.view === view));
  find(".with-names").setAttribute("aria-pressed", withNames);
  settle();
}

function open(card) {
  current = card;
  const data = JSON.parse(card.querySelector("script").textContent);
  const scored = data.segments.some((segment) => segment.score !== null);
  for (const name of ["image", "fill", "edges"]) find(".picture ." + name).src = data[name];
  find(".picture .image").alt = data.file;
  find(".picture").style.setProperty("--ratio", data.width / data.height);
  find(".bar h2").textContent = data.file;
  find(".bar h2").title = data.file;
  find(".place").textContent = (shown.indexOf(card) + 1) + " / " + shown.length;
  const ordered = [...data.segments].sort((one, other) => other.area - one.area);
  find(".legend").replaceChildren(...ordered.map(legendEntry));
  find(".labels").replaceChildren(...ordered.filter((segment) => segment.label).map(label));
  find(".facts").textContent = data.width + " × " + data.height + " pixels · " +
    data.segments.length + " " + data.noun + (data.segments.length === 1 ? "" : "s") +
    " · " + (scored ? "score, " : "") + (data.noun === "segment" ? "share" : "box's share") + " of the area";
  frame(null);
  if (!dialog.open) dialog.showModal();
  refresh();
  history.replaceState(null, "", "#" + (cards.indexOf(card) + 1));
}

function step(by) {
  const next = shown[shown.indexOf(current) + by];
  if (next) open(next);
}

function choose(name) { view = name; refresh(); }
function toggleNames() { withNames = !withNames; refresh(); }

cards.forEach((card) => card.querySelector("button").addEventListener("click", () => open(card)));
views.forEach((button) => button.addEventListener("click", () => choose(button.dataset.view)));
find(".with-names").addEventListener("click", toggleNames);
find(".previous").addEventListener("click", () => step(-1));
find(".next").addEventListener("click", () => step(1));
find(".close").addEventListener("click", () => dialog.close());
find(".room").addEventListener("click", (event) => { if (event.target === event.currentTarget) dialog.close(); });
dialog.addEventListener("close", () => {
  history.replaceState(null, "", "#");
  current.querySelector("button").focus();
});
// On the document: what had the focus may be gone with the image before.
document.addEventListener("keydown", (event) => {
  if (!dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    1: () => choose("overlay"), 2: () => choose("edges"), 3: () => choose("image"),
    n: toggleNames, N: toggleNames,
  };
  if (Object.hasOwn(actions, event.key)) { actions[event.key](); event.preventDefault(); }
});
addEventListener("resize", settle);
const first = cards[Number(location.hash.slice(1)) - 1];
if (first) open(first);

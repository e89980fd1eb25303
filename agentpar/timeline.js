// The page is whole without this script: it adds selecting a task, its details and arrows.
// Everything a model or a page wrote goes in by textContent, never as markup.
"use strict";

const tasks = JSON.parse(document.getElementById("tasks").textContent);
const gantt = document.getElementById("gantt");
const arrows = document.getElementById("arrows");
const reuse = document.getElementById("reuse");
const details = document.getElementById("details");
const rows = new Map(
  [...gantt.querySelectorAll(".row.task")].map((row) => [row.dataset.task, row]),
);
const nodes = new Map(
  [...document.querySelectorAll(".plan .node")].map((node) => [node.dataset.task, node]),
);
let picked = null;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(id) {
  const task = tasks[id];
  const close = element("button", "close", "×");
  close.setAttribute("aria-label", "Close");
  close.addEventListener("click", () => pick(null, true));
  const parts = [close, element("h2", "", `${id} · ${task.tool}`), element("p", "times", task.when)];
  const add = (title, text, className) => {
    if (text) parts.push(element("h3", "", title), element("pre", className, text));
  };
  if (task.whose) parts.push(element("p", "", `Not called: its result is there, ${task.whose}.`));
  if (task.thought) parts.push(element("h3", "", "Thought"), element("p", "", task.thought));
  add("Call", task.call);
  add("Arguments as filled in", task.filled);
  add("Too many requests", task.hosts);
  add("Result", task.result);
  add(task.state === "skipped" ? "Why it never ran" : "Error", task.error, "bad");
  for (const [title, others] of [["Needs", task.needs], ["Used by", task.users]]) {
    if (!others.length) continue;
    const links = element("div", "links");
    for (const other of others) {
      const link = element("button", "", tasks[other] ? `${other} ${tasks[other].tool}` : other);
      link.disabled = !tasks[other];
      link.addEventListener("click", () => pick(String(other), true));
      links.append(link);
    }
    parts.push(element("h3", "", title), links);
  }
  details.replaceChildren(...parts);
  details.scrollTop = 0;
}

function pick(id, focus) {
  for (const marked of [rows.get(picked), nodes.get(picked)]) marked?.removeAttribute("aria-current");
  const before = picked;
  picked = id;
  document.body.classList.toggle("picked", id !== null);
  if (id !== null) {
    show(id);
    for (const marked of [rows.get(id), nodes.get(id)]) marked?.setAttribute("aria-current", "true");
  }
  if (focus) rows.get(id ?? before)?.querySelector("button").focus();
  draw(id);
  drawReuse();  // the panel at the side has made the lanes narrower, or wider again
}

// From the end of the call that found something to where it settled another team's.
function drawReuse() {
  reuse.replaceChildren();
  const base = gantt.getBoundingClientRect();
  const made = (tag, attributes) => {
    const shape = document.createElementNS(reuse.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    reuse.append(shape);
  };
  for (const [id, task] of Object.entries(tasks)) {
    const [from, to] = [task.from, id].map((key) =>
      rows.get(String(key))?.querySelector(".bar")?.getBoundingClientRect());
    if (!task.from || !from || !to) continue;
    const [x, y] = [from.right - base.left, (from.top + from.bottom) / 2 - base.top];
    const [ex, ey] = [to.right - base.left, (to.top + to.bottom) / 2 - base.top];
    const down = ey > y ? 1 : -1;
    const tip = ey - down * 6;  // the arrow comes from above or below, and ends at the bar's edge
    const bend = Math.max(18, Math.min(60, Math.abs(ey - y) / 3)) * down;
    made("circle", { cx: x, cy: y, r: 3 });
    made("path", { d: `M${x} ${y}C${x + 14} ${y + bend} ${ex} ${tip - bend} ${ex} ${tip - down * 7}` });
    made("path", { class: "head", d: `M${ex - 4} ${tip - down * 8}L${ex} ${tip}L${ex + 4} ${tip - down * 8}Z` });
  }
}

function draw(id) {
  arrows.replaceChildren();
  if (id === null || !tasks[id]) return;
  const base = gantt.getBoundingClientRect();
  const ends = (other) => {
    const bar = rows.get(String(other))?.querySelector(".bar");
    if (!bar) return null;
    const box = bar.getBoundingClientRect();
    return { left: box.left - base.left, right: box.right - base.left,
      top: box.top - base.top, bottom: box.bottom - base.top };
  };
  const arrow = (from, to) => {
    const [start, end] = [ends(from), ends(to)];
    if (!start || !end) return;
    const path = document.createElementNS(arrows.namespaceURI, "path");
    const dot = document.createElementNS(arrows.namespaceURI, "circle");
    const [y, below] = [(end.top + end.bottom) / 2, end.top > start.top];
    // Out of the bar's end and into the next bar's start; straight across where they overlap.
    const ahead = end.left > start.right + 8;
    const x = ahead ? end.left : Math.max(end.left, Math.min(start.right, end.right)) - 3;
    const turn = Math.min(start.right + 8, (start.right + end.left) / 2);
    const middle = (start.top + start.bottom) / 2;
    path.setAttribute("d", ahead
      ? `M${start.right} ${middle}H${turn}V${y}H${x}`
      : `M${x} ${below ? start.bottom : start.top}V${below ? end.top : end.bottom}`);
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", ahead ? y : below ? end.top : end.bottom);
    dot.setAttribute("r", 3.5);
    arrows.append(path, dot);
  };
  for (const need of tasks[id].needs) arrow(need, id);
  for (const user of tasks[id].users) arrow(id, user);
}

function move(step) {
  const ids = [...rows.keys()];
  const at = ids.indexOf(picked);
  const next = at < 0 ? (step > 0 ? 0 : ids.length - 1) : at + step;
  if (ids[next] !== undefined) pick(ids[next], true);
}

for (const [id, row] of rows) {
  row.addEventListener("click", () => pick(id === picked ? null : id));
  row.addEventListener("mouseenter", () => draw(id));
  row.addEventListener("mouseleave", () => draw(picked));
}
for (const [id, node] of nodes) {
  if (!tasks[id]) continue;
  node.setAttribute("tabindex", "0");
  node.setAttribute("role", "button");
  node.addEventListener("click", () => pick(id));
  node.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick(id);
    }
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && picked !== null) pick(null, true);
  const onRow = gantt.contains(document.activeElement);
  if (!onRow || (event.key !== "ArrowDown" && event.key !== "ArrowUp")) return;
  event.preventDefault();
  if (picked === null) picked = document.activeElement.closest(".row")?.dataset.task ?? null;
  move(event.key === "ArrowDown" ? 1 : -1);
});
window.addEventListener("resize", () => {
  draw(picked);
  drawReuse();
});

function followHash() {
  const id = /^#task-([\d.]+)$/.exec(location.hash)?.[1];
  if (id && tasks[id]) pick(id);
}
window.addEventListener("hashchange", followHash);
followHash();
drawReuse();
document.documentElement.dataset.ready = "yes";

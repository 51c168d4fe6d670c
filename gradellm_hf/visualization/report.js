const $ = id => document.getElementById(id);
const SHADES = 8, RANKED = 10, DECADES = 3;  // logarithmic shading spans so many powers of ten
const state = { level: 0, shading: "linear", hideSpecial: true, values: null, selection: null, focus: 0 };
const layers = new Map();
let units = [], unitOfToken = [], shades = [], scores = [], anchor = null, dragging = false;

// ---- Text

// Control characters and marks that reorder text show as symbols, so that no token can disguise another.
const shown = text => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replace(/[\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/g,
    c => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
const oneLine = text => shown(text).replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
const brief = text => oneLine(text).trim() || "\u2423";
const percent = x => x === 0 ? "0 %" : Math.abs(x) < 0.001 ? "< 0.1 %" : `${(100 * x).toFixed(Math.abs(x) < 0.1 ? 1 : 0)} %`;

function build() {
  units = unitsOf(data.levels[state.level].sizes ?? data.tokens.map(() => 1));
  unitOfToken = [];
  shades = new Int8Array(units.length);
  for (const part of ["prompt", "generated"]) {
    const lines = document.createDocumentFragment();
    let line = null;
    units.forEach((unit, u) => {
      if (unit.generated !== (part === "generated")) return;
      for (let i = unit.first; i < unit.last; i++) unitOfToken[i] = u;
      unit.text.split("\n").forEach((text, k, pieces) => {
        const ends = k < pieces.length - 1;
        if (!text && !ends) return;
        if (!line) {
          line = lines.appendChild(document.createElement("p"));
          line.dir = "auto";
          line.className = "boilerplate";  // until something else than special tokens is in it
        }
        const span = line.appendChild(document.createElement("span"));
        span.textContent = shown(text);
        span.dataset.unit = u;
        span.className = (ends ? "newline " : "") + (unit.special ? "special" : "");
        unit.parts.push(span);
        if (!unit.special) line.className = "";
        if (ends) line = null;
      });
      const [head] = unit.parts;
      if (!head) return;
      head.tabIndex = -1;
      head.setAttribute("role", "button");
      head.setAttribute("aria-label", spoken(unit));
    });
    $(part).replaceChildren(lines);
  }
}

function probability(unit) {
  let product = 1;
  for (let i = unit.first; i < unit.last; i++) product *= data.probabilities[i - numPrompt];
  return product;
}

function spoken(unit) {
  const text = unit.text === "\n" ? "line break" : unit.text.trim() ? oneLine(unit.text).trim() : "white space";
  return `${unit.name ? unit.name + ": " : ""}${text}, ${unit.generated ? `generated, probability ${percent(probability(unit))}` : "prompt"}`;
}

const visible = u => units[u]?.parts.length > 0 && !(state.hideSpecial && units[u].special);

// ---- Scores of the selection

function update() {
  const { selection, values } = state;
  if (!values) return;
  const counted = i => !(state.hideSpecial && data.special[i]);
  scores = new Float32Array(units.length);
  let hidden = 0, all = 0;
  if (selection) {
    const first = units[selection.from].first, last = units[selection.to].last;
    if (selection.reverse) {
      const { from, all: sums } = received(values, first, last, counted);
      units.forEach((unit, u) => {
        if (!unit.generated || u <= selection.to) return;
        const [a, b] = [unit.first - numPrompt, unit.last - numPrompt];
        const sum = sums.subarray(a, b).reduce((x, y) => x + y, 0);
        if (sum > 0) scores[u] = from.subarray(a, b).reduce((x, y) => x + y, 0) / sum;
      });
    } else {
      const sums = contributions(values, first - numPrompt, last - numPrompt);
      sums.forEach((score, i) => {
        if (counted(i)) scores[unitOfToken[i]] += score;
        else hidden += Math.abs(score);
      });
      all = scores.reduce((x, y) => x + Math.abs(y), 0);
      hidden = hidden > 0 ? hidden / (hidden + all) : 0;
      if (all > 0) scores = scores.map(score => score / all);
    }
  }
  shade();
  describe(hidden);
}

function shade() {
  const highest = scores.reduce((x, y) => Math.max(x, Math.abs(y)), 0);
  const { selection } = state;
  units.forEach((unit, u) => {
    const relative = highest > 0 ? Math.abs(scores[u]) / highest : 0;
    const strength = state.shading === "linear" ? relative - 0.02 : 1 + Math.log10(relative) / DECADES;
    const size = strength > 0 ? Math.min(SHADES, Math.ceil(strength * SHADES)) : 0;
    const next = scores[u] < 0 ? -size : size;
    if (shades[u] !== next) {
      shades[u] = next;
      for (const part of unit.parts) {
        if (next) part.dataset.shade = next;
        else delete part.dataset.shade;
      }
    }
    const chosen = Boolean(selection) && u >= selection.from && u <= selection.to;
    if (Boolean(unit.chosen) !== chosen) {
      unit.chosen = chosen;
      for (const part of unit.parts) part.classList.toggle("chosen", chosen);
    }
    const pressed = chosen && selection.pinned;
    if (Boolean(unit.pressed) !== pressed) {
      unit.pressed = pressed;
      if (pressed) unit.parts[0]?.setAttribute("aria-pressed", "true");
      else unit.parts[0]?.removeAttribute("aria-pressed");
    }
  });
  document.body.classList.toggle("pinned", Boolean(selection?.pinned));
}

// ---- The panel beside the text

const rows = Array.from({ length: RANKED }, () => {
  const item = document.createElement("li"), button = item.appendChild(document.createElement("button"));
  button.type = "button";
  const text = button.appendChild(document.createElement("bdi"));
  const share = button.appendChild(document.createElement("output")), bar = button.appendChild(document.createElement("i"));
  const before = text.appendChild(new Text()), token = text.appendChild(document.createElement("b")), after = text.appendChild(new Text());
  $("ranking").append(item);
  return { item, button, before, token, after, share, bar };
});

function ranking() {
  return Array.from(scores.keys()).filter(u => scores[u] !== 0).sort((a, b) => Math.abs(scores[b]) - Math.abs(scores[a])).slice(0, RANKED);
}

function describe(hidden) {
  const { selection } = state;
  const level = data.levels[state.level].name;
  if (!selection) {
    $("kind").textContent = numSteps ? "" : "Nothing was generated.";
    for (const id of ["subject", "detail", "ranking-heading", "left-out"]) $(id).textContent = "";
    rows.forEach(row => { row.item.hidden = true; });
    $("actions").hidden = true;
    return;
  }
  const chosen = units.slice(selection.from, selection.to + 1), [unit] = chosen;
  $("kind").textContent = `${unit.generated ? "Generated" : "Prompt"} ${chosen.length > 1 ? `${level}s, ${chosen.length} together` : level}`;
  $("subject").textContent = chosen.length === 1 && unit.name ? unit.name : brief(chosen.map(u => u.text).join(""));
  $("detail").textContent = unit.generated ? `Probability ${percent(chosen.reduce((p, u) => p * probability(u), 1))}` : "";
  $("ranking-heading").textContent = selection.reverse ? `Share in each generated ${level}` : "Strongest sources, share of all";
  const ranked = ranking(), highest = ranked.length ? Math.abs(scores[ranked[0]]) : 1;
  rows.forEach((row, k) => {
    const u = ranked[k];
    row.item.hidden = u === undefined;
    if (u === undefined) return;
    const around = (from, to) => oneLine(units.slice(from, to).filter(v => !v.special).map(v => v.text).join(""));
    row.button.dataset.source = u;
    row.before.data = around(Math.max(0, u - 4), u).slice(-10);
    row.token.textContent = units[u].name ?? (oneLine(units[u].text).trim() ? oneLine(units[u].text) : "\u2423");
    row.after.data = around(u + 1, u + 5).slice(0, 14);
    row.share.textContent = percent(scores[u]);
    row.bar.style.transform = `scaleX(${Math.abs(scores[u]) / highest})`;
    row.bar.classList.toggle("against", scores[u] < 0);
  });
  $("left-out").textContent = hidden > 0 ? `Hidden special tokens hold ${percent(hidden)} more of the scores; shares leave them out.` : "";
  $("actions").hidden = !selection.pinned;
  $("turn").hidden = !unit.generated;
  $("turn").textContent = selection.reverse ? "What it rests on" : "What it fed";
}

function announce() {
  const { selection } = state;
  if (!selection) {
    $("status").textContent = "Nothing is pinned.";
    return;
  }
  const text = brief(units.slice(selection.from, selection.to + 1).map(u => u.text).join(""));
  const list = ranking().slice(0, 3).map(u => `${brief(units[u].text)} ${percent(scores[u])}`).join(", ") || "nothing";
  $("status").textContent = `${selection.pinned ? "Pinned. " : ""}${text} ${selection.reverse ? "fed" : "rests on"}: ${list}.`;
}

// ---- Selecting

function select(from, to, { pinned, reverse = !units[from].generated } = {}) {
  state.selection = { from: Math.min(from, to), to: Math.max(from, to), pinned, reverse };
  update();
}

function preview(u) {
  if (!state.selection?.pinned && units[u].generated) select(u, u, { pinned: false });
}

function pin(u, extend) {
  const { selection } = state;
  if (extend && anchor !== null && units[anchor].generated === units[u].generated) select(anchor, u, { pinned: true });
  else if (selection?.pinned && selection.from === u && selection.to === u) return unpin();
  else {
    anchor = u;
    select(u, u, { pinned: true });
  }
  return announce();
}

function unpin() {
  if (!state.selection?.pinned) return;
  anchor = null;
  const u = state.selection.from;
  state.selection = null;
  if (units[u].generated) select(u, u, { pinned: false });
  else first();
  announce();
}

// Without a choice the page shows the first generated unit.
function first() {
  const u = units.findIndex((unit, k) => unit.generated && visible(k));
  state.selection = null;
  if (u >= 0) select(u, u, { pinned: false });
  else update();
}

function rove(u, focus) {
  if (units[state.focus]?.parts[0]) units[state.focus].parts[0].tabIndex = -1;
  state.focus = u;
  const head = units[u]?.parts[0];
  if (!head) return;
  head.tabIndex = 0;
  if (focus) head.focus();
}

// The units, or a setting, have changed: the same tokens stay selected.
function rebuild() {
  const tokens = state.selection && [units[state.selection.from].first, units[state.selection.to].last - 1];
  const kept = state.selection, focused = units[state.focus]?.first ?? numPrompt;
  anchor = null;
  build();
  document.body.classList.toggle("hide-special", state.hideSpecial);
  const home = tokens?.map(i => unitOfToken[i]).filter(visible);
  if (home?.length === 2) select(home[0], home[1], kept);
  else first();
  if (kept?.pinned && state.selection?.pinned) anchor = state.selection.from;
  const u = unitOfToken[focused];
  rove(visible(u) ? u : state.selection?.from ?? units.findIndex((_, k) => visible(k)), false);
}

const unitAt = event => {
  const span = event.target.closest?.("#text [data-unit]");
  return span ? Number(span.dataset.unit) : null;
};

// ---- Pointer

$("text").addEventListener("pointerover", event => {
  const u = unitAt(event);
  if (u === null) return;
  if (dragging && units[u].generated && anchor !== null) {
    if (u !== anchor || state.selection.from !== state.selection.to) select(anchor, u, { pinned: true });
  } else preview(u);
  tip(u, event.target);
});
$("text").addEventListener("pointerleave", () => { $("tip").hidden = true; });
$("text").addEventListener("pointerdown", event => {
  const u = unitAt(event);
  if (u === null || event.button !== 0 || event.shiftKey || event.pointerType !== "mouse" || !units[u].generated) return;
  if (state.selection?.pinned && state.selection.from === u && state.selection.to === u) return;
  dragging = true;
  anchor = u;
});
document.addEventListener("pointerup", () => { dragging = false; });
$("text").addEventListener("mousedown", event => {
  if (event.shiftKey && unitAt(event) !== null) event.preventDefault();  // no text selection
});
$("text").addEventListener("click", event => {
  const u = unitAt(event);
  if (u === null) return;
  if (!getSelection().isCollapsed) return;  // text is being selected to be copied
  rove(u, true);
  pin(u, event.shiftKey);
  tip(u, event.target);
});
// A drag ends where no click comes: its two ends differ.
document.addEventListener("pointerup", () => {
  const { selection } = state;
  if (selection?.pinned && selection.from !== selection.to) announce();
});

function tip(u, target) {
  const unit = units[u], lines = [];
  if (unit.generated) lines.push(`probability ${percent(probability(unit))}`);
  if (scores[u]) lines.push(state.selection.reverse ? `${percent(scores[u])} from the selection` : `${percent(scores[u])} of the selection's scores`);
  $("tip").hidden = !lines.length;
  if (!lines.length) return;
  $("tip").textContent = lines.join(" \u00b7 ");
  const box = target.getClientRects()[0], width = $("tip").offsetWidth;
  if (!box) return;
  $("tip").style.left = `${scrollX + Math.max(4, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
  $("tip").style.top = `${scrollY + box.top - $("tip").offsetHeight - 5}px`;
}

// ---- Keyboard

$("text").addEventListener("focusin", event => {
  const u = unitAt(event);
  if (u === null) return;
  rove(u, false);
  if (event.target.matches(":focus-visible") && !state.selection?.pinned) {
    preview(u);
    announce();
  }
});

function neighbour(u, step) {
  let next = u + step;
  while (units[next] && !visible(next)) next += step;
  return units[next] ? next : u;
}

$("text").addEventListener("keydown", event => {
  const u = unitAt(event);
  if (u === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const rightToLeft = getComputedStyle(event.target).direction === "rtl";
  const forward = rightToLeft ? "ArrowLeft" : "ArrowRight", back = rightToLeft ? "ArrowRight" : "ArrowLeft";
  const here = Array.from(units.keys()).filter(v => units[v].generated === units[u].generated && visible(v));
  const target = { [forward]: neighbour(u, 1), [back]: neighbour(u, -1), Home: here[0], End: here.at(-1) }[event.key];
  if (target !== undefined) {
    event.preventDefault();
    if (event.shiftKey) {
      if (units[target].generated !== units[u].generated) return;
      if (anchor === null) anchor = u;
      select(anchor, target, { pinned: true });
      announce();
    }
    rove(target, true);
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    pin(u, event.shiftKey);
  }
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") unpin();
});

// ---- Panel and controls

$("ranking").addEventListener("click", event => {
  const source = event.target.closest("button")?.dataset.source;
  if (source !== undefined) units[source].parts[0].scrollIntoView({ block: "center" });
});
function name(event, on) {
  const source = event.target.closest("button")?.dataset.source;
  for (const part of document.querySelectorAll(".named")) part.classList.remove("named");
  if (on && source !== undefined) for (const part of units[source].parts) part.classList.add("named");
}
for (const [type, on] of [["pointerover", true], ["focusin", true], ["pointerout", false], ["focusout", false]]) {
  $("ranking").addEventListener(type, event => name(event, on));
}
$("unpin").addEventListener("click", unpin);
$("turn").addEventListener("click", () => {
  const { from, to, reverse } = state.selection;
  select(from, to, { pinned: true, reverse: !reverse });
  announce();
});
$("controls").addEventListener("submit", event => event.preventDefault());
$("controls").addEventListener("change", async event => {
  const { target } = event;
  if (target.id === "layer") {
    const chosen = target.value;
    if (!layers.has(chosen)) layers.set(chosen, unpack(data.layers[chosen]));
    const values = await layers.get(chosen);
    if (target.value !== chosen) return;  // another was chosen meanwhile
    state.values = values;
    update();
  } else if (target.name === "shading") {
    state.shading = target.value;
    $("scale-low").textContent = target.value === "log" ? "a thousandth" : "none";
    update();
  } else {
    if (target.id === "hide-special") state.hideSpecial = target.checked;
    else state.level = Number(target.value);
    rebuild();
  }
});

function controls() {
  data.levels.forEach(({ name }, k) => {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: "level", value: k, checked: k === 0 });
    text.textContent = name[0].toUpperCase() + name.slice(1) + "s";
    label.append(input, text);
    $("levels").append(label);
  });
  for (const [value, text] of [["all", "all, summed"], ...data.layers.map(({ name }, k) => [k, name])]) $("layer").add(new Option(text, value));
  $("layer-choice").hidden = !data.layers.length;
  const signed = data.signed ? [-SHADES, -5, -2] : [];
  const steps = [...signed, ...Array.from({ length: SHADES + 1 }, (_, k) => k)];
  for (const k of steps) {
    const swatch = $("ramp").appendChild(document.createElement("i"));
    if (k) swatch.dataset.shade = k;
  }
  const onlySpecial = data.special.slice(numPrompt).every(Boolean);
  state.hideSpecial = data.special.includes(1) && !onlySpecial;
  $("hide-special").checked = state.hideSpecial;
  $("hide-special").parentElement.hidden = !data.special.includes(1);
}

(async () => {
  controls();
  rebuild();
  layers.set("all", unpack(data.summed));
  state.values = await layers.get("all");
  update();
  document.body.dataset.ready = "";
  performance.mark("ready");
})();

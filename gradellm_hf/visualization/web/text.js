// The prompt and the answer as units that can be pointed at, shaded by their shares.

const SHADES = 8;

// Control characters and marks that reorder text show as symbols, so that no token can disguise another.
const shown = text => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replace(/[\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff]/g,
    c => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
const oneLine = text => shown(text).replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5");
const brief = (text, most = 120) => {
  const line = oneLine(text).trim() || "\u2423";
  return line.length <= most ? line : `${line.slice(0, most / 2 - 1).trimEnd()} \u2026 ${line.slice(1 - most / 2).trimStart()}`;
};
const percent = x => {
  const size = Math.abs(x), digits = size < 0.1 && size > 0 ? 1 : 0;
  return (x < 0 ? "\u2212" : "") + (size === 0 ? "0 %" : size < 0.001 ? "< 0.1 %" : `${(100 * size).toFixed(digits)} %`);
};
const element = (tag, className = "", text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

class TextView {
  constructor(explained, prompt, answer) {
    Object.assign(this, { explained, prompt, answer, units: [], unitOfToken: [], focused: 0 });
  }

  build(level) {
    this.units = this.explained.units(level);
    this.unitOfToken = this.units.flatMap((unit, u) => Array(unit.last - unit.first).fill(u));
    this.pictures = new Map(this.explained.images.map(image => [image, new PictureView(image, this.unitOfToken)]));
    this.fill(this.prompt, unit => !unit.generated);
    this.fill(this.answer, unit => unit.generated);
  }

  fill(place, belongs) {
    const { segments, spans } = this.explained;
    const blocks = document.createDocumentFragment();
    let block = null, line = null, segment;
    const labelled = segments.some(({ first }) => belongs({ generated: first >= this.explained.promptLength })) && (place === this.prompt
      || segments.filter(({ first }) => first >= this.explained.promptLength).length > 1);
    this.units.forEach((unit, u) => {
      if (!belongs(unit)) return;
      const home = segments.findIndex(({ first, last }) => first <= unit.first && unit.first < last);
      if (home !== segment || !block) {
        segment = home;
        line = null;
        block = blocks.appendChild(element("div", home < 0 ? "between" : "segment"));
        if (home >= 0 && labelled) {
          block.dataset.role = segments[home].role;
          block.append(element("p", "role", segments[home].name));
        }
      }
      if (unit.image) {
        const view = this.pictures.get(unit.image);
        if (!view.figure.isConnected && !block.contains(view.figure)) block.append(view.figure);
        line = null;
        unit.parts.push(...view.partsOf(unit));
        return this.reachable(unit);
      }
      const span = spans.find(({ first }) => first === unit.first);
      const isUnexplained = unit.generated && !this.explained.explainedOf(unit.first, unit.last).length;
      unit.text.split("\n").forEach((text, k, pieces) => {
        const ends = k < pieces.length - 1;
        if (!text && !ends) return;
        if (!line) {
          line = block.appendChild(element("p", "line marks"));  // until something else than marks is in it
          line.dir = "auto";
        }
        const part = line.appendChild(element("span", `${ends ? "newline " : ""}${unit.isTemplate ? "template " : ""}${unit.isMark ? "mark " : ""}${isUnexplained ? "unexplained" : ""}`, shown(text)));
        part.dataset.unit = u;
        if (span && k === 0) part.dataset.span = span.name;
        unit.parts.push(part);
        if (!unit.isMark) line.classList.remove("marks");
        if (ends) line = null;
      });
      this.reachable(unit);
    });
    place.replaceChildren(blocks);
    // White space between messages, and template marks alone, take no room.
    for (const between of place.querySelectorAll(".between")) {
      if (segments.length && !between.textContent.trim()) between.classList.add("marks");
      if (!between.querySelector(".line:not(.marks)")) between.classList.add("marks");
    }
  }

  reachable(unit) {
    const [head] = unit.parts;
    if (!head) return;
    head.tabIndex = -1;
    head.setAttribute("role", "button");
    head.setAttribute("aria-label", this.spoken(unit));
  }

  spoken(unit) {
    if (unit.image) return `${unit.name}, prompt`;
    const text = unit.text === "\n" ? "line break" : unit.text.trim() ? brief(unit.text) : "white space";
    return `${unit.name ? unit.name + ": " : ""}${text}, ${unit.generated ? `generated, ${this.likelihood(unit.first, unit.last)}` : "prompt"}`;
  }

  likelihood(first, last) {
    const known = this.explained.explainedOf(first, last).length;
    if (!known) return "not explained";
    if (known < last - first) return `${known} of ${last - first} explained, ${percent(this.explained.probability(first, last))} for each of them (geometric mean)`;
    const { level } = this.explained, mean = percent(this.explained.probability(first, last));
    if (level !== "token") return `probability ${mean}${last - first > 1 ? ` for each ${level} (geometric mean)` : ", all its tokens together"}`;
    return last - first > 1 ? `${mean} for each of ${last - first} tokens (geometric mean of their probabilities)` : `probability ${mean}`;
  }

  visible(u, withMarks) {
    return this.units[u]?.parts.length > 0 && (withMarks || !this.units[u].isMark);
  }

  // Where a unit is: the document or message that holds it.
  home({ first, name, generated }) {
    if (generated || name) return "";
    const { spans, segments } = this.explained;
    const inside = places => places.find(place => place.first <= first && first < place.last)?.name;
    return inside(spans) ?? (segments.filter(segment => segment.first < this.explained.promptLength).length > 1 ? inside(segments) : "") ?? "";
  }

  shade({ shares, weak }) {
    const highest = shares.reduce((x, y) => Math.max(x, Math.abs(y)), 0);
    this.units.forEach((unit, u) => {
      const size = shares[u] ? Math.max(1, Math.ceil(Math.abs(shares[u]) / highest * SHADES - 0.02)) : 0;
      const next = shares[u] ? String(shares[u] < 0 ? -size : size) : weak[u] ? "weak" : "";
      if ((unit.shade ?? "") === next) return;
      unit.shade = next;
      for (const part of unit.parts) {
        if (next) part.dataset.shade = next;
        else delete part.dataset.shade;
      }
    });
  }

  // Colours the patches of pictures by the scores of single tokens.
  see(scores) {
    const views = [...this.pictures.values()], densest = Math.max(0, ...views.map(view => view.densest(scores)));
    for (const view of views) view.colour(scores, densest);
  }

  // Marks the selected units, or none.
  choose(selection) {
    this.units.forEach((unit, u) => {
      const chosen = Boolean(selection) && u >= selection.from && u <= selection.to, pressed = chosen && selection.pinned;
      if (Boolean(unit.chosen) === chosen && Boolean(unit.pressed) === pressed) return;
      Object.assign(unit, { chosen, pressed });
      for (const part of unit.parts) part.classList.toggle("chosen", chosen);
      if (pressed) unit.parts[0]?.setAttribute("aria-pressed", "true");
      else unit.parts[0]?.removeAttribute("aria-pressed");
    });
  }

  // The one unit that Tab reaches.
  rove(u, focus) {
    if (this.units[this.focused]?.parts[0]) this.units[this.focused].parts[0].tabIndex = -1;
    this.focused = u;
    const head = this.units[u]?.parts[0];
    if (!head) return;
    head.tabIndex = 0;
    if (focus) head.focus();
  }

  neighbour(u, step, withMarks) {
    let next = u + step;
    while (this.units[next] && !this.visible(next, withMarks)) next += step;
    return this.units[next] ? next : u;
  }
}

// The list beside the text: what the selection rests on, strongest first, and what was measured.

const RANKED = 8, RANKED_LONG = 5, SHORT = 24;  // a long unit takes two lines of the list; a short one is shown with what is around it
const KINDS = { special: "special tokens", template: "template", sink: "first position", own: "own text", outside: "other text", weak: "weak scores", rest: "not kept" };

class Panel {
  constructor(root, explained, text) {
    Object.assign(this, { root, explained, text });
    this.ranking = root.querySelector(".ranking");
    this.rows = Array.from({ length: RANKED }, () => {
      const item = element("li"), button = item.appendChild(element("button"));
      button.type = "button";
      const share = button.appendChild(element("output")), label = button.appendChild(element("bdi"));
      const before = label.appendChild(new Text()), name = label.appendChild(element("b")), after = label.appendChild(new Text());
      const home = button.appendChild(element("span", "home")), bar = button.appendChild(element("i"));
      this.ranking.append(item);
      return { item, button, share, before, name, after, home, bar };
    });
  }

  $(name) {
    return this.root.querySelector(`.${name}`);
  }

  ranked(shares) {
    return Array.from(shares.keys()).filter(u => shares[u] !== 0).sort((a, b) => Math.abs(shares[b]) - Math.abs(shares[a]))
      .filter((u, k, all) => k < RANKED_LONG || (k < RANKED && all.slice(0, RANKED).every(v => this.isShort(this.text.units[v]))));
  }

  isShort({ text, name }) {
    return text.trim().length < SHORT && !name;
  }

  subject(selection) {
    return brief(this.text.units.slice(selection.from, selection.to + 1).map(unit => unit.image ? unit.name : unit.text).join(""));
  }

  describe(selection, level, { shares, leftOut }) {
    const { explained, text } = this, { target, foil } = explained;
    const chosen = selection ? text.units.slice(selection.from, selection.to + 1) : [];
    const [first, last] = selection ? [chosen[0].first, chosen.at(-1).last] : explained.written, some = this.isExplained(selection);
    const known = explained.explainedOf(first, last).length;
    const subject = selection ? (chosen.length === 1 && chosen[0].name) || this.subject(selection) : "the whole answer";
    this.$("question").replaceChildren(...this.question(selection, subject));
    this.$("whole").hidden = !selection?.pinned;
    const several = chosen.length > 1 ? `${chosen.length} ${level}s together` : level;
    this.$("detail").textContent = !explained.numSteps ? "Nothing was generated."
      : selection && chosen[0].generated ? `Generated ${several}; ${text.likelihood(chosen[0].first, chosen.at(-1).last)}.`
      : selection?.reverse ? `Its share in each ${level} of the answer.` : foil !== null ? `Negative shares speak for \u201c${brief(foil)}\u201d, positive ones for \u201c${brief(target)}\u201d.`
      : known < last - first ? `Of ${known} explained tokens; ${last - first - known} others are not explained.` : "Strongest sources, with their shares.";
    this.list(shares);
    const rest = this.ranked(shares).length || !some ? "" : selection?.reverse ? "Nothing counts it as a source." : "No source has a share.";
    this.$("left-out").textContent = rest || (selection?.reverse || !leftOut.length ? ""
      : `Not counted: ${leftOut.map(([kind, share]) => `${KINDS[kind]} ${percent(share).replace(" ", "\u00a0")}`).join(", ")}.`);
    this.$("turn").hidden = !selection?.pinned || !chosen[0].generated || chosen.at(-1).last >= explained.numTokens;
    this.$("turn").textContent = selection?.reverse ? "What it rests on" : "What it fed";
    this.measured(selection);
  }

  // Whether the selection has a heatmap, or needs none.
  isExplained(selection) {
    if (!selection || selection.reverse) return true;
    const { units } = this.text;
    return this.explained.explainedOf(units[selection.from].first, units[selection.to].last).length > 0;
  }

  question(selection, subject) {
    const { target, foil } = this.explained;
    if (!selection && !this.explained.numSteps) return ["Answer"];
    if (!selection && foil !== null) return ["Why \u201c", element("bdi", "", brief(target)), "\u201d rather than \u201c", element("bdi", "", brief(foil)), "\u201d?"];
    const quoted = selection ? ["\u201c", element("bdi", "", subject), "\u201d"] : ["The whole answer"];
    return [...quoted, selection?.reverse ? " fed" : this.isExplained(selection) ? " rests on" : " is not explained"];
  }

  list(shares) {
    const { units } = this.text, ranked = this.ranked(shares), highest = ranked.length ? Math.abs(shares[ranked[0]]) : 1;
    const around = (from, to) => shown(units.slice(from, to).filter(unit => !unit.isTemplate).map(unit => unit.text).join("").replace(/\s+/g, " "));
    this.rows.forEach((row, k) => {
      const u = ranked[k], unit = units[u];
      row.item.hidden = u === undefined;
      if (!unit) return;
      row.button.dataset.source = u;
      const own = brief(unit.text), isShort = this.isShort(unit);
      row.before.data = isShort ? lastWords(around(Math.max(0, u - 5), u).replace(/^[\s.,:;!?]+/, ""), 18) + (/^\s/.test(unit.text) ? " " : "") : "";
      row.name.textContent = unit.name ?? (isShort ? own : "");
      row.after.data = isShort ? around(u + 1, u + 6).slice(0, 32) : `${unit.name ? "  " : ""}${oneLine(unit.text).trim().slice(0, 300)}`;
      row.item.classList.toggle("long", !isShort);
      row.home.textContent = this.text.home(unit);
      row.share.textContent = percent(shares[u]);
      row.bar.style.transform = `scaleX(${Math.abs(shares[u]) / highest})`;
      row.bar.classList.toggle("against", shares[u] < 0);
    });
  }

  // What the model lost without sources, beside their shares; of all parts of the answer, or of the selected ones.
  measured(selection) {
    const { units } = this.text, place = this.$("measured");
    const first = selection ? units[selection.from].first : 0, last = selection ? units[selection.to].last : this.explained.numTokens;
    const inside = selection?.reverse ? [] : this.explained.removals.filter(removal => removal.first < last && removal.last > first);
    const most = Math.max(...inside.flatMap(({ loss, other }) => [loss, other ?? 0]), 1e-9);
    place.hidden = !inside.length;
    const bar = (size, className) => {
      const drawn = element("i", className);
      drawn.style.transform = `scaleX(${Math.max(size, 0) / most})`;
      return drawn;
    };
    place.querySelector("ul").replaceChildren(...inside.map(({ part, removed, loss, other }) => {
      const item = element("li"), names = removed.map(({ text, share }) => `\u201c${brief(text, 60)}\u201d (share ${percent(share)})`);
      item.append(element("b", "", brief(part, 70)), ` without ${names.join(", ") || "nothing"}: `, element("output", "", nats(loss)), bar(loss, "loss"));
      if (other !== null) item.append("without as much other text: ", element("output", "", nats(other)), bar(other, "other"));
      return item;
    }));
  }

  announcement(selection, { shares }) {
    const { units } = this.text;
    if (!this.isExplained(selection)) return `${this.subject(selection)}: not explained.`;
    const list = this.ranked(shares).slice(0, 3).map(u => `${units[u].name ?? brief(units[u].text)} ${percent(shares[u])}`).join(", ") || "nothing";
    const subject = selection ? this.subject(selection) : "The whole answer";
    return `${selection?.pinned ? "Pinned. " : ""}${subject} ${selection?.reverse ? "fed" : "rests on"}: ${list}.`;
  }
}

const nats = loss => `${loss < 0 ? "+" : "\u2212"}${Math.abs(loss).toFixed(1)} nats${loss >= 0.7 ? ` (${Math.exp(loss) < 1000 ? Math.exp(loss).toFixed(loss < 2 ? 1 : 0) : "over 1,000"} times less likely)` : ""}`;
// The end of a text, from the beginning of a word on.
const lastWords = (text, most) => text.length <= most ? text : text.slice(-most).replace(/^\S+/, "\u2026");

// <gradellm-report>: one explanation. Its data are the JSON in it; style and ids are its own, so that a page may hold several.

const STYLES = new CSSStyleSheet();
STYLES.replaceSync(STYLE);

class GradELLMReport extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    // While a page is read, an element is met before what is in it.
    if (this.querySelector("script") || document.readyState !== "loading") this.open();
    else document.addEventListener("DOMContentLoaded", () => this.open(), { once: true });
  }

  async open() {
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [STYLES];
    root.innerHTML = MARKUP;
    this.explained = new Explained(JSON.parse(this.querySelector("script").textContent));
    this.text = new TextView(this.explained, this.$("prompt .tokens"), this.$("answer .tokens"));
    this.panel = new Panel(root, this.explained, this.text);
    this.state = {
      level: this.explained.opening, ignored: new Set(this.explained.ignore), marks: false, selection: null, anchor: null, dragging: false,
    };
    this.controls();
    listen(this);
    this.heatmap = await this.explained.heatmap();
    this.rebuild();
    this.dataset.ready = "";
    performance.mark("ready");
  }

  $(name) {
    return this.shadowRoot.querySelector(`.${name}`);
  }

  get level() {
    return this.explained.levels[this.state.level];
  }

  // What the units of the answer are.
  get part() {
    return this.level.of ?? this.level.name;
  }

  // ---- What is shown

  update() {
    const { selection } = this.state;
    this.basis = selection?.reverse ? this.fed(selection) : this.restsOn(selection);
    this.text.shade(this.basis);
    this.text.see(this.ofPictures(selection));
    this.text.choose(selection);
    this.panel.describe(selection, this.part, this.basis);
    this.$("report").classList.toggle("pinned", Boolean(selection?.pinned));
  }

  restsOn(selection) {
    const { units, unitOfToken } = this.text, { written } = this.explained;
    const [first, last] = selection ? [units[selection.from].first, units[selection.to].last] : written;
    return this.heatmap.basis(first, last, unitOfToken, units.length, this.explained.candidates(this.level, this.state.ignored));
  }

  // The share of each single token of an image among all of these.
  ofPictures(selection) {
    const { explained, text, heatmap } = this, { written, numTokens } = explained, { units } = text;
    if (!explained.images.length || selection?.reverse) return new Float64Array(numTokens);
    const [first, last] = selection ? [units[selection.from].first, units[selection.to].last] : written;
    return heatmap.basis(first, last, explained.tokens.map((_, i) => i), numTokens, explained.ofImages).shares;
  }

  // For each later unit of the answer, the share that the selection has in it.
  fed({ from, to }) {
    const { units } = this.text, shares = new Float64Array(units.length), weak = new Uint8Array(units.length);
    const candidates = this.explained.candidates(this.level, new Set([...this.state.ignored].filter(kind => kind !== "own" || !units[from].generated)));
    const start = Math.max(units.findIndex(unit => unit.generated), to + 1);
    for (let u = start; start > 0 && u < units.length; u++) {
      const basis = this.heatmap.basis(units[u].first, units[u].last, this.text.unitOfToken, units.length, candidates);
      for (let source = from; source <= to; source++) {
        shares[u] += basis.shares[source];
        weak[u] |= basis.weak[source];
      }
    }
    return { shares, weak, leftOut: [] };
  }

  // The units, or a setting, have changed: the same tokens stay selected.
  rebuild() {
    const { state, text } = this, kept = state.selection;
    const tokens = kept && [text.units[kept.from].first, text.units[kept.to].last - 1];
    const focused = text.units[text.focused]?.first ?? this.explained.promptLength;
    text.build(this.level);
    this.$("report").classList.toggle("hide-marks", !state.marks);
    const home = tokens?.map(i => text.unitOfToken[i]).filter(u => text.visible(u, state.marks));
    state.selection = kept?.pinned && home.length === 2 ? { ...kept, from: home[0], to: home[1] } : null;
    state.anchor = state.selection?.from ?? null;
    const u = text.unitOfToken[focused];
    text.rove(text.visible(u, state.marks) ? u : text.units.findIndex((_, k) => text.visible(k, state.marks)), false);
    this.update();
  }

  // ---- Selecting

  select(from, to, { pinned, reverse = !this.text.units[from].generated } = {}) {
    this.state.selection = { from: Math.min(from, to), to: Math.max(from, to), pinned, reverse };
    this.update();
  }

  preview(u) {
    if (!this.state.selection?.pinned && this.text.units[u].generated) this.select(u, u, { pinned: false });
  }

  pin(u, extend) {
    const { selection, anchor } = this.state, { units } = this.text;
    if (selection?.pinned && !extend && selection.from === u && selection.to === u) return this.showWhole();
    const from = extend && anchor !== null && units[anchor].generated === units[u].generated ? anchor : u;
    this.state.anchor = from;
    this.select(from, u, { pinned: true });
    return this.announce();
  }

  showWhole() {
    const wasPinned = this.state.selection?.pinned;
    Object.assign(this.state, { selection: null, anchor: null });
    this.update();
    if (wasPinned) this.announce();
  }

  announce() {
    this.$("status").textContent = this.panel.announcement(this.state.selection, this.basis);
  }

  // To a source in the text, and back to where the page was.
  jump(u) {
    const back = this.$("back");
    if (back.hidden) this.origin = [scrollX, scrollY];
    const [part] = this.text.units[u].parts;
    if (!part) return;
    part.scrollIntoView({ block: "center" });
    part.classList.add("named");
    setTimeout(() => part.classList.remove("named"), 2500);
    back.hidden = this.origin[1] === scrollY;
  }

  goBack() {
    scrollTo(...this.origin);
    this.$("back").hidden = true;
  }

  // ---- Controls

  controls() {
    const { explained } = this, root = this.shadowRoot;
    this.$("title").textContent = explained.heading;
    this.$("facts").textContent = explained.facts;
    root.querySelector("header").hidden = !explained.heading;
    explained.levels.forEach(({ name, label }, k) => {
      const choice = element("label"), input = choice.appendChild(element("input"));
      Object.assign(input, { type: "radio", name: "level", value: k, checked: k === this.state.level });
      choice.append(element("span", "", label));
      this.$("levels").append(choice);
    });
    for (const kind of ["own", "special", "template", "sink"]) {
      const choice = root.querySelector(`[name=count][value=${kind}]`);
      choice.checked = !this.state.ignored.has(kind);
      choice.parentElement.hidden = !explained.kinds.includes(kind);
    }
    for (const [value, text] of [["all", "all, summed"], ...explained.layers.map(({ name }, k) => [k, name])]) this.$("layer").add(new Option(text, value));
    this.$("layer").parentElement.hidden = !explained.layers.length;
    this.$("show-marks").parentElement.hidden = !explained.marks.length;
    const { signed, foil, target } = explained, [low, high] = this.shadowRoot.querySelectorAll(".scale span");
    const shades = signed ? [-8, -5, -2, "", 2, 5, 8] : ["", "weak", 1, 2, 3, 4, 5, 6, 7, 8];
    const ends = foil !== null ? [`for \u201c${brief(foil, 24)}\u201d`, `for \u201c${brief(target, 24)}\u201d`] : ["against", "for"];
    [low.textContent, high.textContent] = signed ? ends : ["nothing", "strongest"];
    for (const shade of shades) this.$("ramp").appendChild(element("i")).dataset.shade = shade;
  }

  async change({ target }) {
    const { state } = this;
    if (target.name === "count") {
      if (target.checked) state.ignored.delete(target.value);
      else state.ignored.add(target.value);
      this.update();
    } else if (target.classList.contains("layer")) {
      const heatmap = await this.explained.heatmap(target.value);
      if (this.$("layer").value !== target.value) return;  // another was chosen meanwhile
      this.heatmap = heatmap;
      this.update();
    } else {
      if (target.name === "level") state.level = Number(target.value);
      else state.marks = target.checked;
      this.rebuild();
    }
  }
}

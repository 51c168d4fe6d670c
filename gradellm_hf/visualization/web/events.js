// Pointer, keyboard and controls of a report.

function listen(report) {
  const { shadowRoot: root, text, state } = report, texts = [report.$("prompt"), report.$("answer")], tip = report.$("tip");
  const on = (places, type, handle) => [places].flat().forEach(place => place.addEventListener(type, handle));
  const unitAt = event => {
    const part = event.target.closest?.("[data-unit]");
    return part ? Number(part.dataset.unit) : null;
  };

  // ---- Pointer

  on(texts, "pointerover", event => {
    const u = unitAt(event), { selection, anchor, dragging } = state;
    if (u === null) return;
    if (dragging && text.units[u].generated && anchor !== null) {
      if (u !== anchor || selection.from !== selection.to) report.select(anchor, u, { pinned: true });
    } else if (event.pointerType !== "touch") report.preview(u);
    showTip(u, event.target);
  });
  on(texts, "pointerleave", () => {
    tip.hidden = true;
    if (state.selection && !state.selection.pinned) report.showWhole();
  });
  on(texts, "pointerdown", event => {
    const u = unitAt(event), { selection } = state;
    if (u === null || event.button !== 0 || event.shiftKey || event.pointerType !== "mouse" || !text.units[u].generated) return;
    if (selection?.pinned && selection.from === u && selection.to === u) return;
    state.dragging = true;
    state.anchor = u;
  });
  on(document, "pointerup", () => {
    // A drag ends where no click comes: its two ends differ.
    if (state.dragging && state.selection?.pinned && state.selection.from !== state.selection.to) report.announce();
    state.dragging = false;
  });
  on(texts, "mousedown", event => {
    if (event.shiftKey && unitAt(event) !== null) event.preventDefault();  // no text selection
  });
  on(texts, "click", event => {
    const u = unitAt(event);
    if (u === null) return;
    if (!(root.getSelection?.() ?? getSelection()).isCollapsed) return;  // text is being selected to be copied
    text.rove(u, true);
    report.pin(u, event.shiftKey);
    showTip(u, event.target);
  });

  function showTip(u, target) {
    const unit = text.units[u], share = report.basis.shares[u], lines = [];
    if (unit.generated) lines.push(text.likelihood(unit.first, unit.last));
    if (share) lines.push(state.selection?.reverse ? `${percent(share)} from the selection` : `share ${percent(share)}`);
    else if (report.basis.weak[u] && !state.selection?.reverse) lines.push("weak: not counted");
    tip.hidden = !lines.length;
    const [box] = target.getClientRects();
    if (!lines.length || !box) return;
    tip.textContent = lines.join(" \u00b7 ");
    tip.style.left = `${Math.max(4, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(4, box.top - tip.offsetHeight - 5)}px`;
  }

  // ---- Keyboard

  on(texts, "focusin", event => {
    const u = unitAt(event);
    if (u === null) return;
    text.rove(u, false);
    if (event.target.matches(":focus-visible") && !state.selection?.pinned) {
      report.preview(u);
      report.announce();
    }
  });
  on(texts, "keydown", event => {
    const u = unitAt(event), { units } = text;
    if (u === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const rightToLeft = getComputedStyle(event.target).direction === "rtl";
    const forward = rightToLeft ? "ArrowLeft" : "ArrowRight", back = rightToLeft ? "ArrowRight" : "ArrowLeft";
    const here = Array.from(units.keys()).filter(v => units[v].generated === units[u].generated && text.visible(v, state.marks));
    const step = direction => text.neighbour(u, direction, state.marks);
    const target = { [forward]: step(1), [back]: step(-1), Home: here[0], End: here.at(-1) }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      if (event.shiftKey) {
        if (units[target].generated !== units[u].generated) return;
        state.anchor ??= u;
        report.select(state.anchor, target, { pinned: true });
        report.announce();
      }
      text.rove(target, true);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      report.pin(u, event.shiftKey);
    }
  });
  on(document, "keydown", event => {
    if (event.key === "Escape" && state.selection) report.showWhole();
  });

  // ---- List and controls

  const sourceAt = event => event.target.closest("button")?.dataset.source;
  const outline = (event, isNamed) => {
    for (const part of root.querySelectorAll(".named")) part.classList.remove("named");
    for (const part of isNamed ? text.units[sourceAt(event)]?.parts ?? [] : []) part.classList.add("named");
  };
  const list = report.$("ranking");
  on(list, "click", event => {
    if (sourceAt(event) !== undefined) report.jump(Number(sourceAt(event)));
  });
  for (const type of ["pointerover", "focusin"]) on(list, type, event => outline(event, true));
  for (const type of ["pointerout", "focusout"]) on(list, type, event => outline(event, false));
  on(report.$("whole"), "click", () => report.showWhole());
  on(report.$("back"), "click", () => report.goBack());
  on(report.$("turn"), "click", () => {
    const { from, to, reverse } = state.selection;
    report.select(from, to, { pinned: true, reverse: !reverse });
    report.announce();
  });
  on(report.$("controls"), "submit", event => event.preventDefault());
  on(report.$("controls"), "change", event => report.change(event));
}

customElements.define("gradellm-report", GradELLMReport);

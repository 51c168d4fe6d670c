// The pictures of a prompt: each with a patch for every token that stands for a part of it.

const COVER = 0.65;  // how much of the picture the strongest patch covers

class PictureView {
  constructor(image, unitOfToken) {
    this.image = image;
    this.figure = element("figure", "picture");
    this.figure.dataset.unit = unitOfToken[image.first];
    const frame = this.figure.appendChild(element("div", "frame"));
    frame.style.aspectRatio = `${image.width} / ${image.height}`;
    const scale = Math.min(480 / image.width, 480 / image.height, Math.max(1, 160 / image.width));  // at most 480 pixels, and not tiny
    frame.style.width = `${Math.round(image.width * scale)}px`;
    if (image.picture) frame.appendChild(Object.assign(element("img"), { src: image.picture, alt: "" }));
    // Tiles lie above the small version of the whole picture, so that both can be pointed at.
    this.patches = new Map();
    const size = ([, , width, height]) => width * height;
    const order = image.boxes.map((_, k) => k).filter(k => size(image.boxes[k]) > 0).sort((a, b) => size(image.boxes[b]) - size(image.boxes[a]));
    for (const k of order) {
      const patch = frame.appendChild(element("i", "patch")), [left, top, width, height] = image.boxes[k];
      Object.assign(patch.style, { left: `${left}%`, top: `${top}%`, width: `${width}%`, height: `${height}%` });
      patch.dataset.unit = unitOfToken[image.positions[k]];
      this.patches.set(image.positions[k], { patch, size: width * height });
    }
  }

  // What can be pointed at for a unit: the patch of a single token, or the whole picture.
  partsOf({ first, last }) {
    if (last - first > 1 || this.image.last - this.image.first === 1) return [this.figure];
    return this.patches.has(first) ? [this.patches.get(first).patch] : [];
  }

  // The largest score for its size.
  densest(scores) {
    return Math.max(0, ...Array.from(this.patches, ([i, { size }]) => Math.abs(scores[i]) / size));
  }

  colour(scores, densest) {
    for (const [i, { patch, size }] of this.patches) {
      const strength = densest > 0 ? COVER * Math.abs(scores[i]) / size / densest : 0;
      patch.style.backgroundColor = strength > 0 ? `oklch(.6 .2 ${scores[i] < 0 ? 58 : 252} / ${strength.toFixed(3)})` : "transparent";
    }
  }
}

"use strict";
// Pictures that answer the pointer: a sprite's codes are read back from its colours, and said. Text
// reaches the page as text alone (textContent): a token may spell anything.
const readTiles = (data) => {
  const codes = new Map(data.palette.map((colour, code) => [parseInt(colour.slice(1), 16), code]));

  // A sprite's codes, read back from its colours when the pointer first comes to it.
  const sprites = new Map();
  const load = (number, tile) => {
    if (sprites.has(number)) return sprites.get(number);
    sprites.set(number, null);
    const source = getComputedStyle(tile).getPropertyValue("--data").trim();
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, image.width, image.height).data;
      sprites.set(number, { width: image.width, pixels });
    };
    image.src = source.replace(/^url\(["']?/, "").replace(/["']?\)$/, "");
    return null;
  };
  const codeAt = (sprite, x, y) => {
    const at = 4 * (y * sprite.width + x);
    const [r, g, b, alpha] = sprite.pixels.slice(at, at + 4);
    if (alpha === 0) return 255;
    return codes.get((r << 16) | (g << 8) | b);
  };

  // What a code says.
  const onScale = (code, low, high) => 10 ** (low + ((code - 2) / data.levels) * (high - low));
  const said = (code, low, high) => {
    if (code === undefined) return "not readable in this browser";
    if (code === 255) return "hidden";
    if (code === 254) return "not finite";
    if (code === 0) return "exactly 0";
    if (code === 1) return `below ${(10 ** low).toExponential(0)}`;
    const value = onScale(code, low, high);
    return (code === 253 && high > 0 ? "at least " : "about ") + value.toPrecision(2);
  };
  const weight = (code) => said(code, Math.log10(data.smallest), 0);
  const token = (scenario, row, at) => {
    const text = data.texts[scenario]?.[row]?.[at];
    return text === undefined ? `${at}` : `${at} “${text}”`;
  };
  const span = (scenario, row, cell, step) => {
    if (step === 1) return token(scenario, row, cell);
    const texts = data.texts[scenario]?.[row] ?? [];
    const last = Math.min((cell + 1) * step, texts.length || Infinity) - 1;
    const first = cell * step;
    const words = texts.slice(first, last + 1).join("").slice(0, 80);
    return `${first} to ${last}` + (words ? ` “${words}”` : "");
  };

  return { load, codeAt, onScale, said, weight, token, span };
};

// Show what `kinds` says of the cell under the pointer.
const answerPointer = (load, kinds) => {
  const tip = document.getElementById("tip");
  const point = (event) => {
    const tile = event.target.closest?.(".tile");
    if (!tile) {
      tip.hidden = true;
      return;
    }
    const box = tile.getBoundingClientRect();
    const [left, top] = [box.left + tile.clientLeft, box.top + tile.clientTop];
    const [w, h] = [Number(tile.dataset.w), Number(tile.dataset.h)];
    const x = Math.min(w - 1, Math.max(0, Math.floor(((event.clientX - left) / tile.clientWidth) * w)));
    const y = Math.min(h - 1, Math.max(0, Math.floor(((event.clientY - top) / tile.clientHeight) * h)));
    const sprite = load(tile.dataset.sprite, tile);
    const text = sprite ? kinds[tile.dataset.kind](tile, x, y, sprite) : "…";
    tip.textContent = text;
    tip.hidden = !text;
    const beside = event.clientX + 14 + tip.offsetWidth > innerWidth ? -tip.offsetWidth - 14 : 14;
    const below = event.clientY + 14 + tip.offsetHeight > innerHeight ? -tip.offsetHeight - 14 : 14;
    tip.style.left = `${Math.max(4, event.clientX + beside)}px`;
    tip.style.top = `${Math.max(4, event.clientY + below)}px`;
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("pointerleave", () => (tip.hidden = true));
};

// The image: drawn with pointer or keys, or read from a file, and cut down to the model's pixels.
//
// The drawing has a whole number of dots for each of the model's pixels, so that averaging them is
// exact, and a file of the model's own size passes through unchanged.

import { visible } from "/shown.js";

const SMALLEST_SIDE = 320;
const LONG_STEP = 4;

export class Pad {
  // `changed` is called with the pad; its `origin` says in words where the image comes from.
  constructor(canvas, cursor, preview, [height, width, channels], changed) {
    Object.assign(this, { canvas, cursor, preview, height, width, channels, changed });
    this.dots = Math.max(1, Math.ceil(SMALLEST_SIDE / Math.max(height, width)));
    canvas.width = width * this.dots;
    canvas.height = height * this.dots;
    preview.width = width;
    preview.height = height;
    this.brush = canvas.getContext("2d", { willReadFrequently: true });
    this.ink = "#ffffff";
    this.pen = { x: canvas.width / 2, y: canvas.height / 2, down: false };
    this.#listenToPointer();
    this.#listenToKeys();
    this.clear();
  }

  clear() {
    this.brush.fillStyle = "#000000";
    this.brush.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.#drawn("", true);
  }

  invert() {
    const image = this.brush.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let i = 0; i < image.data.length; i++) if (i % 4 !== 3) image.data[i] = 255 - image.data[i];
    this.brush.putImageData(image, 0, 0);
    this.#drawn(this.origin, false);
  }

  // Fits a picture whole, centred, on black; one of the model's size keeps its pixels.
  async open(file) {
    const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const exact = picture.width === this.width && picture.height === this.height;
    const scale = Math.min(this.canvas.width / picture.width, this.canvas.height / picture.height);
    const [width, height] = [picture.width * scale, picture.height * scale];
    this.brush.fillStyle = "#000000";
    this.brush.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.brush.imageSmoothingEnabled = !exact;
    this.brush.imageSmoothingQuality = "high";
    this.brush.drawImage(
      picture, (this.canvas.width - width) / 2, (this.canvas.height - height) / 2, width, height);
    const name = visible(file.name);
    const size = `${picture.width} × ${picture.height} pixels`;
    picture.close();
    this.#drawn(
      exact ? `${name}: ${size}, as it is.`
        : `${name}: ${size}, resized to ${this.width} × ${this.height}. ` +
          "The certificate is about the resized pixels, not about the file.",
      false);
  }

  // Row by row, a byte a value.
  pixels() {
    const { data } = this.brush.getImageData(0, 0, this.canvas.width, this.canvas.height);
    const values = new Uint8Array(this.height * this.width * this.channels);
    let next = 0;
    for (let y = 0; y < this.height; y++) {
      for (let x = 0; x < this.width; x++) {
        const [r, g, b] = this.#average(data, x, y);
        if (this.channels === 1) {
          // ITU-R BT.601 in integers, as the server and the client turn colours to grey.
          values[next++] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
        } else {
          values.set([r, g, b], next);
          next += 3;
        }
      }
    }
    return values;
  }

  #average(data, x, y) {
    const sums = [0, 0, 0];
    for (let dy = 0; dy < this.dots; dy++) {
      let at = 4 * ((y * this.dots + dy) * this.canvas.width + x * this.dots);
      for (let dx = 0; dx < this.dots; dx++, at += 4) {
        for (let c = 0; c < 3; c++) sums[c] += data[at + c];
      }
    }
    return sums.map((sum) => Math.round(sum / this.dots ** 2));
  }

  #line(from, to) {
    const { brush } = this;
    brush.strokeStyle = this.ink;
    brush.lineWidth = Math.max(this.canvas.width, this.canvas.height) / 13;
    brush.lineCap = "round";
    brush.beginPath();
    brush.moveTo(from.x, from.y);
    brush.lineTo(to.x, to.y);
    brush.stroke();
    this.#drawn("Drawn here.", false);
  }

  #drawn(origin, empty) {
    this.origin = origin;
    this.empty = empty;
    this.#show();
    this.changed(this);
  }

  #show() {
    const values = this.pixels();
    const shown = new ImageData(this.width, this.height);
    for (let i = 0; i < this.width * this.height; i++) {
      for (let c = 0; c < 3; c++) {
        shown.data[4 * i + c] = values[this.channels * i + (this.channels === 1 ? 0 : c)];
      }
      shown.data[4 * i + 3] = 255;
    }
    this.preview.getContext("2d").putImageData(shown, 0, 0);
  }

  #listenToPointer() {
    let last = null;
    const where = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return {
        x: ((event.clientX - box.left) / box.width) * this.canvas.width,
        y: ((event.clientY - box.top) / box.height) * this.canvas.height,
      };
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.canvas.setPointerCapture(event.pointerId);
      last = where(event);
      this.#line(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const next = where(event);
      this.#line(last, next);
      last = next;
    });
    for (const end of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(end, () => { last = null; });
    }
  }

  #listenToKeys() {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    this.canvas.addEventListener("keydown", (event) => {
      if (event.key in steps) this.#move(steps[event.key], event.shiftKey ? LONG_STEP : 1);
      else if (event.key === " ") this.#lower(!this.pen.down);
      else if (event.key === "Delete") this.clear();
      else return;
      event.preventDefault();
    });
    this.canvas.addEventListener("focus", () => this.#place());
    this.canvas.addEventListener("blur", () => this.#lower(false));
  }

  #move([dx, dy], pixels) {
    const from = { ...this.pen };
    const step = pixels * this.dots;
    this.pen.x = Math.min(this.canvas.width, Math.max(0, from.x + dx * step));
    this.pen.y = Math.min(this.canvas.height, Math.max(0, from.y + dy * step));
    if (this.pen.down) this.#line(from, this.pen);
    this.#place();
  }

  #lower(down) {
    if (this.pen.down === down) return;
    this.pen.down = down;
    if (down) this.#line(this.pen, this.pen);
    this.#place();
  }

  #place() {
    this.cursor.hidden = false;
    this.cursor.classList.toggle("down", this.pen.down);
    this.cursor.style.left = `${(100 * this.pen.x) / this.canvas.width}%`;
    this.cursor.style.top = `${(100 * this.pen.y) / this.canvas.height}%`;
  }
}

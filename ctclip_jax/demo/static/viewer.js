// Axial, coronal and sagittal slices of a scan, with a heatmap of patch contributions.
// A volume is int16 HU, [f][h][w]: f toward Superior, h toward Left, w toward Posterior. Slices are
// in radiological orientation: the patient's left on the right, the head up.

const PLANES = {
  // axis perpendicular to it, axes of its rows and columns, whether rows are flipped, edge letters
  axial: { axis: 0, rows: 2, columns: 1, flip: false, letters: ["A", "P", "R", "L"] },
  coronal: { axis: 2, rows: 0, columns: 1, flip: true, letters: ["S", "I", "R", "L"] },
  sagittal: { axis: 1, rows: 0, columns: 2, flip: true, letters: ["S", "I", "A", "P"] },
};
// Alpha, blue, green, red. What a model does not see is darkened under its map.
const POSITIVE = 0x004f5aff, NEGATIVE = 0x00ff8d4f, UNSEEN = 0x80000000;

export class Viewer {
  constructor(onHover) {
    this.onHover = onHover;
    this.window = [-1000, 200];
    this.opacity = 0.6;
    this.map = null;
    for (const name of Object.keys(PLANES)) this.listen(name);
    new ResizeObserver(() => this.draw()).observe(document.querySelector(".panes"));
  }

  // patches: for each axis the patch of the model that a voxel lies in, -1 outside its grid.
  show(volume, { shape, spacing, patches }) {
    Object.assign(this, { volume, shape, spacing, patches, map: null });
    this.at = shape.map((size) => Math.floor(size / 2));
    for (const [name, plane] of Object.entries(PLANES)) {
      const slider = document.getElementById(`${name}-slice`);
      slider.min = 0;
      slider.max = shape[plane.axis] - 1;
    }
    this.draw();
  }

  // map: { values: contributions, flattened from [t][h][w], shape }, or null.
  setMap(map) {
    this.map = map;
    if (map) this.limit = Math.max(...map.values.map(Math.abs)) || 1;
    this.draw();
  }

  // Centers the planes on a patch that lies in the scan.
  goTo(patch) {
    this.at = patch.map((index, axis) => {
      const first = this.patches[axis].indexOf(index), last = this.patches[axis].lastIndexOf(index);
      return (first + last) >> 1;
    });
    this.draw();
  }

  move(axis, index) {
    this.at[axis] = Math.min(this.shape[axis] - 1, Math.max(0, index));
    this.draw();
  }

  draw() {
    if (!this.volume) return;
    for (const name of Object.keys(PLANES)) this.drawPlane(name);
  }

  layout(name) {
    const plane = PLANES[name], canvas = document.getElementById(name);
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth * ratio, height = canvas.clientHeight * ratio;
    const rows = this.shape[plane.rows], columns = this.shape[plane.columns];
    const tall = rows * this.spacing[plane.rows], wide = columns * this.spacing[plane.columns]; // mm
    const scale = Math.min(width / wide, height / tall);
    const box = { width: wide * scale, height: tall * scale };
    return { plane, canvas, ratio, width, height, rows, columns,
      box: { ...box, left: (width - box.width) / 2, top: (height - box.height) / 2 } };
  }

  // [f, h, w] of a row and column of a plane at its current slice.
  indexAt(plane, row, column) {
    const index = [0, 0, 0];
    index[plane.axis] = this.at[plane.axis];
    index[plane.rows] = plane.flip ? this.shape[plane.rows] - 1 - row : row;
    index[plane.columns] = column;
    return index;
  }

  drawPlane(name) {
    const { plane, canvas, ratio, width, height, rows, columns, box } = this.layout(name);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.gray(plane, rows, columns), box.left, box.top, box.width, box.height);
    if (this.map) {
      context.imageSmoothingEnabled = false;
      context.drawImage(this.overlay(plane, rows, columns), box.left, box.top, box.width, box.height);
    }
    this.drawCross(context, plane, box, rows, columns, ratio);
    this.drawLetters(context, plane, width, height, ratio);
    document.getElementById(`${name}-slice`).value = this.at[plane.axis];
    document.getElementById(`${name}-at`).value = `${this.at[plane.axis] + 1} / ${this.shape[plane.axis]}`;
  }

  gray(plane, rows, columns) {
    const picture = new ImageData(columns, rows), pixels = new Uint32Array(picture.data.buffer);
    const [low, high] = this.window, factor = 255 / (high - low);
    const strides = [this.shape[1] * this.shape[2], this.shape[2], 1];
    const start = this.at[plane.axis] * strides[plane.axis];
    for (let row = 0, pixel = 0; row < rows; row++) {
      const index = plane.flip ? rows - 1 - row : row;
      let voxel = start + index * strides[plane.rows];
      for (let column = 0; column < columns; column++, voxel += strides[plane.columns]) {
        const value = Math.max(0, Math.min(255, (this.volume[voxel] - low) * factor)) | 0;
        pixels[pixel++] = 0xff000000 | (value << 16) | (value << 8) | value;
      }
    }
    return onCanvas(picture);
  }

  overlay(plane, rows, columns) {
    const picture = new ImageData(columns, rows), pixels = new Uint32Array(picture.data.buffer);
    const { shape, values } = this.map, strides = [shape[1] * shape[2], shape[2], 1];
    const slab = this.patches[plane.axis][this.at[plane.axis]];
    for (let row = 0, pixel = 0; row < rows; row++) {
      const along = this.patches[plane.rows][plane.flip ? rows - 1 - row : row];
      const start = slab * strides[plane.axis] + along * strides[plane.rows];
      for (let column = 0; column < columns; column++, pixel++) {
        const across = this.patches[plane.columns][column];
        if (slab < 0 || along < 0 || across < 0) {
          pixels[pixel] = UNSEEN;
          continue;
        }
        const share = values[start + across * strides[plane.columns]] / this.limit;
        const alpha = (255 * this.opacity * Math.abs(share)) | 0;
        pixels[pixel] = (alpha << 24) | (share > 0 ? POSITIVE : NEGATIVE);
      }
    }
    return onCanvas(picture);
  }

  drawCross(context, plane, box, rows, columns, ratio) {
    const row = plane.flip ? rows - 1 - this.at[plane.rows] : this.at[plane.rows];
    const x = box.left + ((this.at[plane.columns] + 0.5) / columns) * box.width;
    const y = box.top + ((row + 0.5) / rows) * box.height;
    context.strokeStyle = "rgba(92, 200, 194, .38)";
    context.lineWidth = ratio;
    context.beginPath();
    context.moveTo(x, box.top);
    context.lineTo(x, box.top + box.height);
    context.moveTo(box.left, y);
    context.lineTo(box.left + box.width, y);
    context.stroke();
  }

  drawLetters(context, plane, width, height, ratio) {
    const [top, bottom, left, right] = plane.letters, edge = 12 * ratio;
    context.fillStyle = "rgb(230, 233, 237)";
    context.shadowColor = "black"; // legible on tissue too
    context.shadowBlur = 3 * ratio;
    context.font = `${12 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(top, width / 2, edge);
    context.fillText(bottom, width / 2, height - edge);
    context.fillText(left, edge, height / 2);
    context.fillText(right, width - edge, height / 2);
    context.shadowBlur = 0;
  }

  // [f, h, w] under the pointer, or null.
  indexUnder(name, event) {
    const { plane, canvas, ratio, rows, columns, box } = this.layout(name);
    const bounds = canvas.getBoundingClientRect();
    const column = Math.floor((((event.clientX - bounds.left) * ratio - box.left) / box.width) * columns);
    const row = Math.floor((((event.clientY - bounds.top) * ratio - box.top) / box.height) * rows);
    if (row < 0 || column < 0 || row >= rows || column >= columns) return null;
    return this.indexAt(plane, row, column);
  }

  // HU at an index, and if there is a map, the contribution of its patch; null outside the grid.
  valuesAt(index) {
    const values = { hu: this.volume[flatIndex(index, this.shape)] };
    if (this.map) {
      const patch = index.map((i, axis) => this.patches[axis][i]);
      values.contribution = Math.min(...patch) < 0 ? null : this.map.values[flatIndex(patch, this.map.shape)];
    }
    return values;
  }

  listen(name) {
    const canvas = document.getElementById(name), { axis } = PLANES[name];
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.move(axis, this.at[axis] + Math.sign(event.deltaY) * (name === "axial" ? -1 : 1));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.move(axis, this.at[axis] + step);
    });
    canvas.addEventListener("pointermove", (event) => {
      const index = this.volume && this.indexUnder(name, event);
      this.onHover(index ? this.valuesAt(index) : null);
      if (index && event.buttons === 1) this.center(index);
    });
    canvas.addEventListener("pointerdown", (event) => {
      const index = this.volume && this.indexUnder(name, event);
      if (index) this.center(index);
    });
    canvas.addEventListener("pointerleave", () => this.onHover(null));
    document.getElementById(`${name}-slice`).addEventListener("input", (event) =>
      this.move(axis, Number(event.target.value)));
  }

  center(index) {
    this.at = index;
    this.draw();
  }
}

function flatIndex([f, h, w], shape) {
  return (f * shape[1] + h) * shape[2] + w;
}

function onCanvas(picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

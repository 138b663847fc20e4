// The page's script: sheets to draw on, the GAN's answers, the controls.
//
// A drawing is kept in the colours of the GAN's data; the style inverts what is shown where that suits the scheme.

const byId = (id) => document.getElementById(id);
const settings = await (await fetch("settings")).json();
const { channels, height, width } = settings;
const PIXELS = width * height; // of an image
const SCALE = Math.max(1, Math.round(256 / Math.max(width, height))); // pixels of the pad to one of the GAN's
const MOST_UNDONE = 60;
const dark = matchMedia("(prefers-color-scheme: dark)");
const lightStrokes = settings.contrast === null ? channels === 1 : settings.contrast > 0;
const PAPER = lightStrokes ? "#000000" : "#ffffff";
const INK = lightStrokes ? "#ffffff" : "#000000";

// Pictures: bytes, channels first, to and from canvases.

function createCanvas(columns, rows = 1) {
  const canvas = document.createElement("canvas");
  canvas.width = columns * width;
  canvas.height = rows * height;
  return canvas;
}

function put(canvas, bytes, index = 0, x = 0) {
  const picture = new ImageData(width, height);
  for (let pixel = 0; pixel < PIXELS; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      picture.data[4 * pixel + channel] = bytes[(index * channels + (channel % channels)) * PIXELS + pixel];
    }
    picture.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, x, 0);
}

function planes({ data }, pixels) {
  const bytes = new Uint8Array(channels * pixels);
  for (let pixel = 0, at = 0; pixel < pixels; pixel++, at += 4) {
    if (channels === 1) bytes[pixel] = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2] + 0.5;
    else for (let channel = 0; channel < 3; channel++) bytes[channel * pixels + pixel] = data[at + channel];
  }
  return bytes;
}

// Mean of each block of SCALE x SCALE pixels: the image that the GAN sees.
function reduced(context) {
  const wide = SCALE * width;
  const large = planes(context.getImageData(0, 0, wide, SCALE * height), SCALE * SCALE * PIXELS);
  const sums = new Float32Array(channels * PIXELS);
  for (let place = 0; place < large.length; place++) {
    const row = Math.floor(place / wide);
    sums[Math.floor(row / SCALE) * width + Math.floor((place % wide) / SCALE)] += large[place];
  }
  return Uint8Array.from(sums, (sum) => Math.round(sum / (SCALE * SCALE)));
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

// Sheets: what is drawn on each, and how to undo it.

class Sheet {
  constructor(number) {
    this.canvas = createCanvas(SCALE, SCALE);
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.thumbnail = createCanvas(1);
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.append(this.thumbnail);
    this.button.addEventListener("click", () => choose(this));
    this.item = document.createElement("li");
    this.item.append(this.button);
    this.number = number;
    this.fill();
    this.update();
  }

  fill() {
    this.context.fillStyle = PAPER;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  update() {
    this.bytes = reduced(this.context);
    const paper = parseInt(PAPER.slice(1, 3), 16);
    this.isEmpty = this.bytes.every((value) => value === paper);
    put(this.thumbnail, this.bytes);
    this.item.className = this.isEmpty ? "empty" : "";
    this.button.ariaLabel = `Sheet ${this.number}${this.isEmpty ? ", empty" : ""}`;
  }

  snapshot() {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }
}

const pad = byId("pad");
const view = pad.getContext("2d");
pad.width = SCALE * width;
pad.height = SCALE * height;
const sheets = Array.from({ length: settings.mostExamples }, (_, index) => new Sheet(index + 1));
byId("sheets").append(...sheets.map((sheet) => sheet.item));
const undone = []; // {sheet, before}, the last change last
let current = sheets[0];

function choose(sheet) {
  current = sheet;
  for (const each of sheets) each.button.setAttribute("aria-current", String(each === sheet));
  pad.ariaLabel = `Drawing pad, sheet ${sheet.number}`;
  show();
}

function show() {
  view.drawImage(current.canvas, 0, 0);
  byId("pad-hint").hidden = !current.isEmpty || pen.isDown;
  byId("clear").disabled = current.isEmpty;
  byId("undo").disabled = !undone.length;
}

function remember(sheet = current) {
  undone.push({ sheet, before: sheet.snapshot() });
  if (undone.length > MOST_UNDONE) undone.shift();
}

function finish(sheet = current) {
  performance.clearMeasures();
  performance.mark("finished");
  sheet.update();
  show();
  adapt();
}

function undo() {
  const last = undone.pop();
  if (!last) return;
  last.sheet.context.putImageData(last.before, 0, 0);
  choose(last.sheet);
  finish(last.sheet);
}

// The pen, moved by a pointer or by keys.

const pen = {
  isDown: false,
  erases: false,
  x: pad.width / 2,
  y: pad.height / 2,

  down(x, y) {
    remember();
    this.isDown = true;
    [this.x, this.y] = [x, y];
    this.move(x, y);
  },

  move(x, y) {
    const { context } = current;
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = (byId("width").value * pad.width) / 256;
    context.strokeStyle = this.erases ? PAPER : channels === 3 ? byId("colour").value : INK;
    context.beginPath();
    context.moveTo(this.x, this.y);
    context.lineTo(x, y);
    context.stroke();
    [this.x, this.y] = [x, y];
    show();
  },

  up() {
    if (!this.isDown) return;
    this.isDown = false;
    finish();
  },
};

function place(event) {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  pad.setPointerCapture(event.pointerId);
  byId("cursor").hidden = true;
  pen.down(...place(event));
});
pad.addEventListener("pointermove", (event) => {
  if (!pen.isDown || !event.isPrimary) return;
  const passed = event.getCoalescedEvents();
  for (const each of passed.length ? passed : [event]) pen.move(...place(each));
});
for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => pen.up());

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function showCursor() {
  const cursor = byId("cursor");
  cursor.hidden = false;
  cursor.classList.toggle("down", pen.isDown);
  cursor.style.left = `${(100 * pen.x) / pad.width}%`;
  cursor.style.top = `${(100 * pen.y) / pad.height}%`;
}

pad.addEventListener("keydown", (event) => {
  const direction = DIRECTIONS[event.key];
  if (direction) {
    const reach = pad.width / (event.shiftKey ? 64 : 16);
    const [x, y] = [pen.x + reach * direction[0], pen.y + reach * direction[1]];
    const inside = [Math.min(Math.max(x, 0), pad.width), Math.min(Math.max(y, 0), pad.height)];
    if (pen.isDown) pen.move(...inside);
    else [pen.x, pen.y] = inside;
  } else if (event.key === " " && !event.repeat) {
    if (pen.isDown) pen.up();
    else pen.down(pen.x, pen.y);
  } else return;
  event.preventDefault();
  showCursor();
});
pad.addEventListener("blur", () => {
  pen.up();
  byId("cursor").hidden = true;
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey || pen.isDown) return;
  event.preventDefault();
  undo();
});

// Tools, and images from elsewhere.

function chooseTool(erases) {
  pen.erases = erases;
  byId("pen").ariaPressed = String(!erases);
  byId("eraser").ariaPressed = String(erases);
}
byId("pen").addEventListener("click", () => chooseTool(false));
byId("eraser").addEventListener("click", () => chooseTool(true));
byId("undo").addEventListener("click", undo);
byId("clear").addEventListener("click", () => {
  remember();
  current.fill();
  finish();
});
byId("add").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", ({ target }) => {
  addImages([...target.files]);
  target.value = "";
});
document.addEventListener("paste", (event) => addImages([...event.clipboardData.files]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.querySelector(".board").classList.add("over");
});
for (const end of ["dragleave", "drop"]) {
  document.addEventListener(end, () => document.querySelector(".board").classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  addImages([...event.dataTransfer.files]);
});

async function addImages(files) {
  const changes = new Set();
  let added = null;
  for (const file of files) {
    const sheet = current.isEmpty ? current : sheets.find((each) => each.isEmpty);
    if (!sheet) {
      say(`All ${sheets.length} sheets are in use: clear one first.`);
      break;
    }
    try {
      const { pixels, inverted, evened } = await prepare(file);
      if (inverted) changes.add("light and dark exchanged");
      if (evened) changes.add("background evened out");
      const small = createCanvas(1);
      put(small, fromBase64(pixels));
      remember(sheet);
      sheet.context.imageSmoothingEnabled = false;
      sheet.context.drawImage(small, 0, 0, pad.width, pad.height);
      sheet.update();
      choose((added = sheet));
    } catch (error) {
      say(`${file.name || "The pasted file"} cannot be used: ${error.message}`);
    }
  }
  if (!added) return;
  note = changes.size ? `Added, ${[...changes].join(" and ")}.` : "";
  finish(added);
}

// Sends a picture's pixels, transparent ones as white; the server makes an example of them.
async function prepare(file) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error("it is no image that this browser reads.");
  });
  const factor = Math.min(1, settings.largestSide / Math.max(picture.width, picture.height));
  const [wide, high] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(factor * side)));
  const canvas = new OffscreenCanvas(wide, high);
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, wide, high);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, wide, high);
  const body = planes(context.getImageData(0, 0, wide, high), wide * high);
  return (await ask(`prepare?height=${high}&width=${wide}`, { method: "POST", body })).json();
}

// The GAN's answers.

const shown = { adaptation: 0, step: 0, taken: 0 }; // what the new images are of, and the steps taken so far
const chosen = [0, settings.images - 1];
let stream = new AbortController();
let note = "";

async function ask(address, options = {}) {
  const answer = await fetch(address, options);
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

function say(text) {
  byId("status").textContent = text;
}

const wanted = () => ({ step: byId("steps").valueAsNumber, latent: byId("latent").valueAsNumber });

function adapt() {
  const examples = sheets.filter((sheet) => !sheet.isEmpty).map((sheet) => sheet.bytes);
  if (!examples.length) {
    stream.abort();
    Object.assign(shown, { adaptation: 0, step: 0, taken: 0 });
    say("Before adaptation");
    refresh();
    return;
  }
  const { step, latent } = wanted();
  follow(`adapt?steps=${step}&latent=${latent}`, new Blob(examples));
}

// Shows the images of an event stream, step after step; a later call ends it.
async function follow(address, body = null) {
  stream.abort();
  stream = new AbortController();
  const { signal } = stream;
  try {
    const answer = await ask(address, { method: "POST", body, signal });
    const { latent } = wanted();
    for await (const { name, content } of events(answer.body)) {
      if (signal.aborted) return;
      if (name === "problem") throw new Error(content.message);
      if (name === "begin") {
        shown.adaptation = content.adaptation;
        continue;
      }
      shown.step = shown.taken = content.step;
      if (latent === wanted().latent) showNew(fromBase64(content.images));
      say(`${note} Step ${content.step} of ${wanted().step}`.trim());
      if (content.step === 1) measure("first new images");
    }
    measure("last step");
    note = "";
    refresh();
  } catch (error) {
    if (!signal.aborted) say(`The GAN stopped: ${error.message}`);
  }
}

function measure(name) {
  requestAnimationFrame(() => performance.measure(name, "finished"));
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const whole = (text + part.value).split("\n\n");
    text = whole.pop();
    for (const event of whole) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/);
      yield { name, content: JSON.parse(data) };
    }
  }
}

const query = () => `adaptation=${shown.adaptation}&step=${shown.step}&latent=${wanted().latent}`;

// Runs one call at a time; calls that come meanwhile are made up for by a single one with the newest state.
function newestOnly(run) {
  let isRunning = false;
  let again = false;
  return async () => {
    again = true;
    if (isRunning) return;
    isRunning = true;
    while (again) {
      again = false;
      await run().catch((error) => say(error.message));
      await new Promise(requestAnimationFrame);
    }
    isRunning = false;
  };
}

const bytesOf = async (address) => new Uint8Array(await (await ask(address)).arrayBuffer());

const refresh = newestOnly(async () => {
  showNew(await bytesOf(`images?${query()}`));
  const between = await bytesOf(`between?${query()}&first=${chosen[0]}&second=${chosen[1]}`);
  for (let index = 0; index < settings.between; index++) put(byId("between"), between, index, index * width);
  const invert = Number(getComputedStyle(document.documentElement).getPropertyValue("--shown").trim() !== "none");
  byId("sheet").href = `sheet.png?${query()}&invert=${invert}`;
  byId("archive").href = `images.zip?${query()}&invert=${invert}`;
});

const images = Array.from({ length: settings.images }, (_, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(createCanvas(1));
  button.addEventListener("click", () => {
    if (chosen.includes(index)) return;
    chosen.shift();
    chosen.push(index);
    mark();
    refresh();
  });
  return button;
});
byId("new").append(...images);

function showNew(bytes) {
  images.forEach((button, index) => put(button.firstChild, bytes, index));
}

function mark() {
  images.forEach((button, index) => {
    const order = chosen.indexOf(index) + 1;
    button.ariaPressed = String(order > 0);
    button.ariaLabel = `Image ${index + 1}${order ? `, chosen as ${order}` : ""}`;
    button.querySelector("span")?.remove();
    if (order) button.append(Object.assign(document.createElement("span"), { textContent: order, ariaHidden: "true" }));
  });
}

byId("steps").addEventListener("input", () => {
  const { step, latent } = wanted();
  byId("steps-value").value = step;
  if (!shown.adaptation) return;
  if (step > shown.taken) {
    follow(`continue?adaptation=${shown.adaptation}&after=${shown.taken}&steps=${step}&latent=${latent}`);
    return;
  }
  stream.abort();
  shown.step = step;
  say(`Step ${step} of ${step}`);
  refresh();
});
byId("latent").addEventListener("input", () => {
  byId("latent-value").value = wanted().latent;
  refresh();
});
dark.addEventListener("change", refresh);

// The start.

document.documentElement.dataset.strokes = settings.contrast === null ? "" : lightStrokes ? "light" : "dark";
byId("run").textContent = settings.name;
byId("steps").max = settings.mostSteps;
byId("steps-value").value = byId("steps").value = settings.steps;
byId("latent").max = settings.largestLatent;
byId("colour-tool").hidden = channels !== 3;
byId("between").width = settings.between * width;
byId("between").height = height;
choose(current);
mark();
refresh();

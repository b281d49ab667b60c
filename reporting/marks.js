"use strict";
// What a person says about the images: nominal, anomalous or unclear. Marks are kept in the browser, for this page's address,
// and saved as feedback.csv. A random sample is kept with them: rates and guarantees hold for images that chance has picked.
const MARKS = { n: "nominal", a: "anomalous", u: "unclear" };
const KEPT = "draem marks " + location.pathname;
const FORMULA = /^[=+\-@\t\r']/; // a spreadsheet runs cells that begin so
let marks = {}, sample = new Set(), isKept = true; // image path -> mark; image paths

function readMarks() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT)) ?? {};
    marks = kept.marks ?? {};
    sample = new Set(kept.sample ?? []);
  } catch {
    isKept = false;
  }
}

function keepMarks() {
  try {
    localStorage.setItem(KEPT, JSON.stringify({ marks, sample: [...sample] }));
    isKept = true;
  } catch {
    isKept = false; // no storage in this browser, or it is full
  }
}

function setMark(number, mark) {
  const { path } = images[number];
  if (marks[path] === mark) delete marks[path]; // the same key again takes it back
  else marks[path] = mark;
  keepMarks();
  showMarks();
}

function showMarks() {
  const own = images.filter((image) => marks[image.path]).map((image) => marks[image.path]);
  const counts = Object.values(MARKS).map((mark) => `${own.filter((one) => one === mark).length} ${mark}`);
  const picked = images.filter((image) => sample.has(image.path));
  $("marks").textContent = `marked: ${counts.join(", ")}`
    + (picked.length ? `; random sample: ${picked.filter((image) => marks[image.path]).length} of ${picked.length}` : "")
    + (isKept ? "" : "; this browser keeps no marks: save them before you close the page");
  $("save-marks").disabled = !own.length && !picked.length;
  for (const tile of $("gallery").children) {
    const mark = marks[images[tile.dataset.number].path];
    tile.children[tile.children.length - 1].textContent = mark ? `marked ${mark}` : "";
  }
  for (const button of $("mark-buttons").children) {
    button.setAttribute("aria-pressed", state.open !== null && marks[images[state.open].path] === button.dataset.mark);
  }
}

function passesMarks(image) {
  if (state.marked === "random sample") return sample.has(image.path);
  return !state.marked || (state.marked === "not marked" ? !marks[image.path] : marks[image.path] === state.marked);
}

function pickSample(count) {
  const left = scored.map((image) => image.path), picked = [];
  while (picked.length < count && left.length) picked.push(left.splice(Math.floor(Math.random() * left.length), 1)[0]);
  sample = new Set(picked);
  keepMarks();
  Object.assign(state, { marked: "random sample", filter: "all", folder: "", text: "" });
  for (const id of ["marked", "filter", "folder", "text"]) $(id).value = state[id];
  arrange();
  writeAddress();
}

function cell(text) {
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// The program's own: the slider moves what the page shows, not what the program has said.
const verdict = (image) => !data.has_threshold ? "" : image.score > data.start ? "anomalous" : "nominal";

function saveMarks() {
  // Images of the sample without a mark too: a part of a random sample is not one.
  const rows = images.filter((image) => image.score !== null && (marks[image.path] || sample.has(image.path)))
    .map((image) => [image.path, verdict(image), marks[image.path] ?? "",
      sample.has(image.path) ? "random" : ""]);
  const text = [["path", "verdict", "mark", "sample"], ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "feedback.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function startMarks() {
  readMarks();
  for (const part of document.querySelectorAll(".marking")) part.hidden = !images.some((image) => image.path);
  for (const button of $("mark-buttons").children) {
    button.addEventListener("click", () => setMark(state.open, button.dataset.mark));
  }
  $("save-marks").addEventListener("click", saveMarks);
  $("sample-size").max = scored.length;
  $("pick-sample").addEventListener("click", () => pickSample(Number($("sample-size").value)));
  document.addEventListener("keydown", (event) => {
    const tile = document.activeElement.closest?.(".tile"), mark = MARKS[event.key.toLowerCase()];
    const number = state.open ?? tile?.dataset.number;
    if (!mark || number === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    if (images[number].score !== null && images[number].path) setMark(Number(number), mark);
  });
}

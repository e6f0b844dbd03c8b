// Pictures and videos: from a file to what the API takes, and to a figure that shows what the model sees of it.

import { tokenize } from "./api.js";
import { el, icon } from "./dom.js";

/** One file that goes with a question. */
export class Medium {
    #counts = new Map();

    constructor(file) {
        this.file = file;
        this.isVideo = file.type.startsWith("video/");
        this.name = file.name || (this.isVideo ? "video" : "picture");
        this.url = URL.createObjectURL(file);
    }

    static takes(file) {
        return /^(image|video)\//.test(file.type);
    }

    /** The file as a part of a message, byte by byte: the server prepares it, as it would for any other client. */
    async part() {
        const url = await new Promise((resolve, reject) => {
            const reader = new FileReader();
            reader.onload = () => resolve(reader.result);
            reader.onerror = () => reject(new Error(`${this.name} cannot be read.`));
            reader.readAsDataURL(this.file);
        });
        return this.isVideo ? { type: "video_url", video_url: { url } } : { type: "image_url", image_url: { url } };
    }

    /** What it costs: tiles, grids, visual_tokens. Asked once for each tile limit; what failed may be asked again. */
    count(maxTiles) {
        if (!this.#counts.has(maxTiles)) {
            const counted = this.#ask(maxTiles);
            counted.catch(() => this.#counts.delete(maxTiles));
            this.#counts.set(maxTiles, counted);
        }
        return this.#counts.get(maxTiles);
    }

    async #ask(maxTiles) {
        const messages = [{ role: "user", content: [await this.part()] }];
        return tokenize({ messages, ...(maxTiles && { max_tiles: maxTiles }) });
    }

    /** An element that shows it, or its name where this browser knows no such files. */
    shown({ controls = false } = {}) {
        const node = this.isVideo
            ? el("video", { src: this.url, controls, muted: true, playsinline: true, preload: "metadata" })
            : el("img", { src: this.url, alt: this.name });
        node.addEventListener("error", () => node.replaceWith(el("span", { class: "file" }, icon("file"), this.name)));
        return node;
    }
}

/** A medium with its tiles as a grid over it, and its tokens below. A click makes it larger. */
export function figure(medium, maxTiles) {
    const caption = el("figcaption", {}, "…");
    const overlay = el("span", { class: "tiles", "aria-hidden": "true" });
    medium.count(maxTiles).then(
        (counted) => {
            caption.textContent = inWords(medium, counted);
            if (!medium.isVideo) overlay.replaceChildren(...grid(...counted.grids[0]));
        },
        () => (caption.textContent = medium.name), // the answer tells what is wrong
    );
    return el("figure", {}, frame(medium, overlay), caption);
}

/** A picture with boxes in its own pixels; `highlight(numbers)` brings out some. Null where it cannot be shown. */
export async function boxedFigure(medium, boxes) {
    const shown = medium.shown();
    const known = await shown.decode().then(() => true, () => false);
    if (!known) return null;
    const marks = boxes.map(({ label, box }) => mark(label, box, shown));
    const overlay = el("span", { class: "boxes" }, ...marks);
    const words = boxes.map(({ label, box }) => `${label || "box"} at ${box.map(Math.round).join(", ")}`).join("; ");
    const caption = el("figcaption", { class: "unseen" }, words);
    const node = el("figure", { class: "boxed" }, frame(medium, overlay, shown), caption);
    const highlight = (numbers) => {
        marks.forEach((mark, i) => mark.classList.toggle("on", numbers.includes(i)));
        node.classList.toggle("some", numbers.length > 0);
    };
    return { node, marks, highlight };
}

function frame(medium, overlay, shown = medium.shown({ controls: true })) {
    if (medium.isVideo) return el("div", { class: "frame" }, shown);
    const toggle = ({ currentTarget: button }) =>
        button.setAttribute("aria-expanded", String(button.closest("figure").classList.toggle("large")));
    const attributes = { type: "button", class: "frame", "aria-expanded": "false", onclick: toggle };
    return el("button", { ...attributes, "aria-label": `${medium.name}: larger or smaller` }, shown, overlay);
}

/** Tiles have equal shares of the picture: it is stretched onto the grid. */
function grid(columns, rows) {
    const lines = [];
    for (let i = 1; i < columns; i++) lines.push(line("left", i / columns));
    for (let i = 1; i < rows; i++) lines.push(line("top", i / rows));
    return lines;
}

function line(edge, share) {
    const node = el("i", { class: edge });
    node.style[edge] = `${100 * share}%`;
    return node;
}

function mark(label, [left, top, right, bottom], image) {
    const [across, down] = [100 / image.naturalWidth, 100 / image.naturalHeight];
    const node = el("span", { class: "box" }, label && el("span", {}, label));
    // The label stands above, or below where there is no room.
    node.classList.toggle("low", top * down < 10);
    node.style.left = `${left * across}%`;
    node.style.top = `${top * down}%`;
    node.style.width = `${(right - left) * across}%`;
    node.style.height = `${(bottom - top) * down}%`;
    return node;
}

/** `3 × 2 tiles + thumbnail · 112 tokens` */
export function inWords(medium, { grids, tiles, visual_tokens: tokens }) {
    if (medium.isVideo) return `${grids.length} frames · ${tiles} tiles · ${tokens} tokens`;
    const [columns, rows] = grids[0];
    const cut = columns * rows === 1 ? "1 tile" : `${columns} × ${rows} tiles`;
    return `${cut}${tiles > columns * rows ? " + thumbnail" : ""} · ${tokens} tokens`;
}

// What a model wrote, as nodes: a little Markdown, and boxes that can be pointed at. Nothing here makes markup of text:
// what is not understood stays as it was written. Links stay text too: a model may invent where they lead.

import { el } from "./dom.js";

/** Shows a text that grows, and touches only the blocks that changed, so that a selection in others stays. */
export class Written {
    #shown = [];

    constructor(node) {
        this.node = node;
    }

    update(text) {
        const next = blocks(text);
        let same = 0;
        while (same < next.length && JSON.stringify(next[same]) === this.#shown[same]) same++;
        while (this.node.childNodes.length > same) this.node.lastChild.remove();
        this.node.append(...next.slice(same).map(drawn));
        this.#shown = next.map((block) => JSON.stringify(block));
    }
}

/** Code between fences, headings, lists and paragraphs, in order. */
export function blocks(text) {
    const found = [];
    let fence = null;
    for (const line of text.split("\n")) {
        const last = found.at(-1);
        const [, mark, language] = line.match(/^\s*(```+|~~~+)\s*(\S*)/) ?? [];
        const [, heading, title] = line.match(/^(#{1,6})\s+(.*)/) ?? [];
        const [, bullet, item] = line.match(/^\s{0,3}([-*+]|\d{1,9}[.)])\s+(.*)/) ?? [];
        if (fence) {
            if (mark?.startsWith(fence)) fence = null;
            else last.lines.push(line);
        } else if (mark) {
            fence = mark;
            found.push({ kind: "code", language, lines: [] });
        } else if (heading) {
            found.push({ kind: "heading", level: heading.length, lines: [title] });
        } else if (bullet) {
            const kind = /\d/.test(bullet) ? "ol" : "ul";
            if (last?.kind === kind) last.lines.push(item);
            else found.push({ kind, start: parseInt(bullet) || 1, lines: [item] });
        } else if (!line.trim()) {
            if (last?.kind === "paragraph") found.push({ kind: "gap", lines: [] });
        } else if (last?.kind === "paragraph") {
            last.lines.push(line);
        } else {
            found.push({ kind: "paragraph", lines: [line] });
        }
    }
    return found.filter(({ kind }) => kind !== "gap");
}

function drawn({ kind, lines, level, language, start }) {
    if (kind === "code") return el("pre", { "data-language": language, tabindex: 0 }, el("code", {}, lines.join("\n")));
    if (kind === "heading") return el(`h${Math.min(level + 2, 6)}`, {}, ...inline(lines[0]));
    if (kind === "paragraph") return el("p", {}, ...inline(lines.join("\n")));
    return el(kind, { start: kind === "ol" && start }, ...lines.map((line) => el("li", {}, ...inline(line))));
}

// The form of boxes is that of core/boxes.py.
const LABEL = /(?:<ref>(?<label>(?:(?!<\/?ref>)[^]){0,400})<\/ref>\s*)?/;
const PLACE = new RegExp(`${LABEL.source}<box>(?<box>[^<]*)</box>`);
const FORMS = [/(?<code>`[^`\n]+`)/, /\*\*(?<bold>[^*\n]+)\*\*/, PLACE];
const INLINE = new RegExp(FORMS.map((form) => form.source).join("|"), "g");
const BOX = /\[\s*-?\d{1,9}\s*(?:,\s*-?\d{1,9}\s*){3}\]?/g;

function inline(text) {
    const nodes = [];
    let end = 0;
    for (const match of text.matchAll(INLINE)) {
        const { code, bold, label, box } = match.groups;
        nodes.push(text.slice(end, match.index));
        end = match.index + match[0].length;
        if (code) nodes.push(el("code", {}, code.slice(1, -1)));
        else if (bold) nodes.push(el("strong", {}, ...inline(bold)));
        else nodes.push(mention(label, box));
    }
    return [...nodes, text.slice(end)];
}

/** A place in the picture, named in the text; `data-boxes` says how many boxes of the answer are its own. */
function mention(label, box) {
    const count = `[${box.replace(/^[[ \n]+/, "")}`.match(BOX)?.length ?? 0;
    return el("button", { type: "button", class: "mention", "data-boxes": count, title: box }, label || "box");
}

/** The mentions in a node with the numbers of their boxes: [[button, [0, 1]], …]; none where the counts disagree. */
export function mentions(node, numBoxes) {
    let next = 0;
    const found = [...node.querySelectorAll(".mention")].map((button) => {
        const numbers = Array.from({ length: Number(button.dataset.boxes) }, () => next++);
        return [button, numbers];
    });
    return next === numBoxes ? found : [];
}

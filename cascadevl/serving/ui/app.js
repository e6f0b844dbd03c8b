// The page: a list of exchanges, each a question and its answer, and everything that starts or ends one.

import { Answer } from "./answer.js";
import { model } from "./api.js";
import { Composer } from "./composer.js";
import { el, endKeeper, iconButton } from "./dom.js";
import { figure } from "./media.js";
import { settings, wireSettings } from "./settings.js";

const log = document.getElementById("log");
const empty = document.getElementById("empty");
const exchanges = [];
const keepEndOf = endKeeper();
let running = null;

const maxTiles = () => settings().max_tiles;
const composer = new Composer({ send: (question) => (composer.clear(), ask(question)), stop, maxTiles });

/** Ask in the place of the exchange number `at`; what stood there and below goes. */
async function ask(question, at = exchanges.length) {
    stop();
    for (const each of exchanges.splice(at)) each.node.remove();
    const exchange = new Exchange(question);
    exchanges.push(exchange);
    log.append(exchange.node);
    empty.hidden = true;
    keepEndOf(exchange.answer.node);

    const controller = (running = new AbortController());
    composer.setBusy(true);
    // A question that got no answer is no part of what was said.
    const said = [...exchanges.slice(0, at).filter((each) => each.answer.text), exchange];
    const picture = said.flatMap((each) => each.question.media).at(-1);
    await exchange.answer.stream(body(said), picture, controller.signal);
    if (running === controller) stop();
}

function stop() {
    running?.abort();
    running = null;
    composer.setBusy(false);
}

/** A request for the answer to the last of some exchanges, whose other answers are there. */
async function body(said) {
    const { system, ...chosen } = settings();
    const turns = system ? [{ role: "system", content: system }] : [];
    for (const { question, answer } of said) {
        const parts = await Promise.all(question.media.map((medium) => medium.part()));
        if (question.text) parts.push({ type: "text", text: question.text });
        turns.push({ role: "user", content: parts });
        if (answer.text) turns.push({ role: "assistant", content: answer.text });
    }
    return { ...chosen, messages: turns };
}

/** A question and its answer. A question is never changed: who edits it asks another in its place. */
class Exchange {
    constructor(question) {
        this.question = question;
        this.answer = new Answer(() => (composer.text.focus(), ask(question, this.number)));
        this.asked = this.#asked();
        this.node = el("section", { class: "exchange" }, this.asked, this.answer.node);
    }

    get number() {
        return exchanges.indexOf(this);
    }

    #asked() {
        const { text, media } = this.question;
        const edit = iconButton("edit", "Edit and ask again", () => this.#edit(), { class: "quiet small" });
        const figures = media.map((medium) => figure(medium, maxTiles()));
        return el(
            "article",
            { class: "question", "aria-label": "Question" },
            media.length > 0 && el("div", { class: "figures" }, ...figures),
            el("div", { class: "row" }, edit, text && el("p", { class: "said" }, text)),
        );
    }

    #edit() {
        const cancel = () => {
            editor.node.replaceWith(this.asked);
            this.asked.querySelector(".row button").focus();
        };
        const send = (question) => {
            composer.text.focus();
            ask(question, this.number);
        };
        const editor = new Composer({ send, cancel, question: this.question, maxTiles });
        editors.set(editor.node, editor);
        this.asked.replaceWith(editor.node);
        editor.text.focus();
    }
}

/** Form -> its composer, for files that are dropped or pasted. */
const editors = new WeakMap([[composer.node, composer]]);
const nearest = (target) => editors.get(target.closest?.(".composer")) ?? composer;

function wireFiles() {
    const drop = document.getElementById("drop");
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("paste", (event) => {
        if (!event.clipboardData?.files.length) return;
        event.preventDefault();
        nearest(event.target).add(event.clipboardData.files);
    });
    addEventListener("dragover", (event) => {
        if (!hasFiles(event)) return;
        event.preventDefault(); // without this, the browser would leave the page to show the file
        drop.hidden = false;
    });
    addEventListener("dragleave", (event) => (drop.hidden ||= !event.relatedTarget));
    addEventListener("drop", (event) => {
        drop.hidden = true;
        if (!hasFiles(event)) return;
        event.preventDefault();
        nearest(event.target).add(event.dataTransfer.files);
    });
}

function wireKeys() {
    addEventListener("keydown", (event) => {
        if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) stop();
    });
}

function wireExamples() {
    for (const button of document.querySelectorAll("#examples button")) {
        button.addEventListener("click", async () => {
            const { picture, question } = button.dataset;
            const bytes = await (await fetch(picture)).blob();
            composer.text.value = question;
            composer.add([new File([bytes], picture.split("/").at(-1), { type: bytes.type })]);
        });
    }
}

function startAnew() {
    stop();
    exchanges.flatMap((each) => each.question.media).forEach((medium) => URL.revokeObjectURL(medium.url));
    for (const each of exchanges.splice(0)) each.node.remove();
    composer.clear();
    empty.hidden = false;
    composer.text.focus();
}

async function showModel() {
    const place = document.getElementById("model");
    try {
        const { id, max_model_len: longest, spec_hash: spec } = await model();
        place.title = `Reads ${longest.toLocaleString("en")} tokens; prepares pictures by spec ${spec}`;
        place.textContent = id;
        document.title = `${id} · CascadeVL`;
    } catch (error) {
        place.textContent = error.message;
        place.classList.add("bad");
    }
    place.hidden = false;
}

composer.text.id = "message";
document.getElementById("bottom").append(composer.node);
document.getElementById("new").addEventListener("click", startAnew);
wireSettings(() => composer.recount());
wireFiles();
wireKeys();
wireExamples();
composer.text.focus();
showModel();

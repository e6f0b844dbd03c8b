// One answer: its text as it comes, its boxes, what it took, and what went wrong.

import { chat } from "./api.js";
import { Announcer, el, icon, iconButton } from "./dom.js";
import { boxedFigure } from "./media.js";
import { mentions, Written } from "./text.js";

const CUT = {
    length: "Cut at the limit of tokens; the settings can raise it.",
    repetition: "Cut: it only repeated itself.",
    abort: "Cut by the server.",
};

export class Answer {
    text = "";
    #thoughts = el("p", {});
    #thinking = el("details", { class: "thinking", hidden: true }, el("summary", {}, "Thinking"), this.#thoughts);
    #body = el("div", { class: "written" });
    #below = el("div", { class: "below" });
    #written = new Written(this.#body);
    #painting = false;
    #announcer = new Announcer();

    /** `again()` asks the same once more. */
    constructor(again) {
        this.again = again;
        this.node = el("article", { class: "answer", "aria-label": "Answer" }, this.#thinking, this.#body, this.#below);
    }

    /** Until the answer has ended, however it ends: never throws. `body` may be a promise; boxes lie on `picture`. */
    async stream(body, picture, signal) {
        this.node.classList.add("waiting");
        this.#announcer.begin("Answering…");
        const took = new Took();
        let ended = {};
        try {
            for await (const chunk of chat(await body, signal)) {
                const [choice] = chunk.choices;
                took.see(chunk);
                if (choice?.delta?.reasoning_content) this.#think(choice.delta.reasoning_content);
                if (choice?.delta?.content) this.#say(choice.delta.content);
                if (choice?.finish_reason) ended = choice;
            }
            this.#end("Answered.", CUT[ended.stop_reason ?? ended.finish_reason]);
        } catch (error) {
            if (!this.node.isConnected) return; // another answer stands in its place
            if (error.name === "AbortError") this.#end("Stopped.", "Stopped.");
            else this.#fail(error);
        }
        if (ended.boxes?.length) await this.#showBoxes(picture, ended.boxes);
        this.#below.append(el("div", { class: "foot" }, this.#actions(), took.list()));
    }

    #think(piece) {
        this.#thinking.hidden = false;
        this.#thoughts.append(piece);
    }

    #say(piece) {
        this.text += piece;
        this.#announcer.follow(this.text);
        if (this.#painting) return;
        this.#painting = true;
        // Once a frame: what nobody can see need not be drawn.
        requestAnimationFrame(() => this.#paint());
    }

    #paint() {
        this.#painting = false;
        this.#written.update(this.text);
    }

    #end(words, note) {
        this.#paint();
        this.node.classList.remove("waiting");
        this.#announcer.end(this.text, words);
        if (!this.text && !note) note = "The model said nothing.";
        if (note) this.#below.append(el("p", { class: "note" }, note));
    }

    #fail(error) {
        this.#paint();
        this.node.classList.remove("waiting");
        this.#announcer.end(this.text);
        const retry = el("button", { type: "button", class: "plain", onclick: this.again }, "Try again");
        this.#below.append(el("div", { class: "error", role: "alert" }, el("p", {}, error.message), retry));
        if (error.waitS) countDown(retry, error.waitS);
    }

    /** The picture once more, as the one above may be far away, with what the answer points at. */
    async #showBoxes(picture, boxes) {
        if (!picture || picture.isVideo) return;
        const boxed = await boxedFigure(picture, boxes);
        if (!boxed) return;
        const { node, marks, highlight } = boxed;
        for (const [button, numbers] of mentions(this.#body, boxes.length)) {
            const on = (numbers) => () => {
                highlight(numbers);
                button.classList.toggle("on", numbers.length > 0);
            };
            for (const target of [button, ...numbers.map((number) => marks[number])]) {
                target.addEventListener("pointerenter", on(numbers));
                target.addEventListener("pointerleave", on([]));
            }
            button.addEventListener("focus", on(numbers));
            button.addEventListener("blur", on([]));
        }
        this.#below.prepend(node);
    }

    #actions() {
        const copy = async ({ currentTarget: button }) => {
            await navigator.clipboard.writeText(this.text);
            button.replaceChildren(icon("done"));
            setTimeout(() => button.replaceChildren(icon("copy")), 1500);
        };
        return el(
            "div",
            { class: "actions" },
            // Browsers have a clipboard for https and for this machine alone.
            this.text && navigator.clipboard && iconButton("copy", "Copy", copy, { class: "quiet small" }),
            iconButton("again", "Answer again", this.again, { class: "quiet small" }),
        );
    }
}

/** What an answer took, by this browser's clock and the server's own counts. */
class Took {
    usage = null;
    #startS = now();
    #firstS = null;
    #lastS = null;
    #spec = null;

    see(chunk) {
        this.#spec = chunk.spec_hash ?? this.#spec;
        this.usage = chunk.usage ?? this.usage;
        const delta = chunk.choices[0]?.delta;
        if (!delta?.content && !delta?.reasoning_content) return;
        this.#lastS = now();
        this.#firstS ??= this.#lastS;
    }

    list() {
        const rows = [
            ["First token", this.#firstS && `${(this.#firstS - this.#startS).toFixed(2)} s`],
            ["Speed", this.#speed()],
            ["Prompt", this.usage && inWords(this.usage)],
            ["Answer", this.usage && tokens(this.usage.completion_tokens)],
            ["Spec", this.#spec?.slice(0, 8)],
        ];
        const known = rows.filter(([, value]) => value);
        const shown = known.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
        return shown.length > 0 && el("dl", { class: "took" }, ...shown);
    }

    /** Of the tokens after the first, whose time is the prompt's. */
    #speed() {
        const others = (this.usage?.completion_tokens ?? 0) - 1;
        const seconds = this.#lastS - this.#firstS;
        return others > 0 && seconds > LEAST_S && `${(others / seconds).toFixed(others / seconds < 10 ? 1 : 0)} tokens/s`;
    }
}

const inWords = ({ prompt_tokens: all, prompt_tokens_details: { visual_tokens: visual, cached_tokens: cached } }) =>
    `${all}, ${visual} visual, ${cached} cached`;
/** The server tells what is said fifty times a second: of shorter times, it would be that which is measured. */
const LEAST_S = 0.1;
const now = () => performance.now() / 1000;
const tokens = (count) => `${count.toLocaleString("en")} ${count === 1 ? "token" : "tokens"}`;

/** A server that is full says when to come again: until then the button waits. */
function countDown(button, seconds) {
    button.disabled = seconds > 0;
    button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
    if (seconds > 0) setTimeout(() => countDown(button, seconds - 1), 1000);
}

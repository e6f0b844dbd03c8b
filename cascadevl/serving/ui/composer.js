// Where a question is written: text, and pictures and videos with it. At the bottom of the page, and in the place of a
// question that is being edited.

import { el, iconButton } from "./dom.js";
import { inWords, Medium } from "./media.js";

export class Composer {
    #media = [];
    #files = el("input", { type: "file", accept: "image/*,video/*", multiple: true, hidden: true });
    #thumbs = el("ul", { class: "thumbs", "aria-label": "Attached" });
    #problem = el("p", { class: "problem", role: "alert" });

    /** `send({text, media})`; `cancel` and `question` where one is edited; `stop` where answers are waited for. */
    constructor({ send, stop = null, cancel = null, question = { text: "", media: [] }, maxTiles }) {
        Object.assign(this, { send, cancel, maxTiles, busy: false });
        this.text = el("textarea", { rows: 1, placeholder: "Ask about a picture", "aria-label": "Message" });
        this.text.value = question.text;
        this.sendButton = iconButton("send", "Send", null, { type: "submit", class: "strong round" });
        this.stopButton = iconButton("stop", "Stop (Esc)", stop, { class: "strong round", hidden: true });
        const hint = cancel ? "Sending removes what follows" : "Enter sends · Shift+Enter breaks the line";
        this.node = el(
            "form",
            { class: "composer", onsubmit: (event) => (event.preventDefault(), this.#submit()) },
            this.#thumbs,
            this.text,
            el(
                "div",
                { class: "bar" },
                iconButton("attach", "Add pictures or videos", () => this.#files.click(), { class: "quiet" }),
                this.#files,
                el("span", { class: "hint" }, hint),
                cancel && el("button", { type: "button", class: "plain", onclick: cancel }, "Cancel"),
                this.stopButton,
                this.sendButton,
            ),
            this.#problem,
        );
        this.#files.addEventListener("change", () => {
            this.add(this.#files.files);
            this.#files.value = ""; // the same file may be chosen again
        });
        this.text.addEventListener("input", () => this.#fit());
        this.text.addEventListener("keydown", (event) => this.#key(event));
        question.media.forEach((medium) => this.#attach(medium));
        requestAnimationFrame(() => this.#fit());
    }

    /** Files that were chosen, dropped or pasted. */
    add(files) {
        const others = [...files].filter((file) => !Medium.takes(file)).map((file) => file.name);
        this.#tell(others.length ? `${others.join(", ")}: neither a picture nor a video.` : "");
        [...files].filter(Medium.takes).forEach((file) => this.#attach(new Medium(file)));
        this.text.focus();
    }

    /** While an answer comes, a question can be written but not sent. */
    setBusy(busy) {
        this.busy = busy;
        const focused = [this.sendButton, this.stopButton].includes(document.activeElement);
        this.sendButton.hidden = busy;
        this.stopButton.hidden = !busy;
        if (focused) this.text.focus();
    }

    clear() {
        this.text.value = "";
        this.#media = [];
        this.#thumbs.replaceChildren();
        this.#tell("");
        this.#fit();
    }

    /** Count again what is attached, for another tile limit. */
    recount() {
        const media = this.#media.splice(0);
        this.#thumbs.replaceChildren();
        media.forEach((medium) => this.#attach(medium));
    }

    #attach(medium) {
        this.#media.push(medium);
        const caption = el("small", {}, "…");
        const thumb = el("li", { title: medium.name }, medium.shown(), caption);
        const remove = () => {
            this.#media.splice(this.#media.indexOf(medium), 1);
            thumb.remove();
            this.#tell("");
            this.text.focus();
        };
        thumb.append(iconButton("remove", `Remove ${medium.name}`, remove, { class: "remove" }));
        this.#thumbs.append(thumb);
        medium.count(this.maxTiles()).then(
            (counted) => (caption.textContent = inWords(medium, counted).split(" · ").at(-1)),
            (error) => {
                if (!thumb.isConnected) return;
                thumb.classList.add("bad");
                caption.textContent = "not counted";
                this.#tell(`${medium.name}: ${error.message}`);
            },
        );
    }

    #key(event) {
        // An input method uses Enter to choose a word.
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            this.#submit();
        }
        if (event.key === "Escape" && this.cancel) {
            event.stopPropagation();
            this.cancel();
        }
    }

    #submit() {
        const question = { text: this.text.value.trim(), media: [...this.#media] };
        if (this.busy || !(question.text || question.media.length)) return;
        this.send(question);
    }

    #tell(problem) {
        this.#problem.textContent = problem;
    }

    #fit() {
        this.text.style.height = "auto";
        this.text.style.height = `${this.text.scrollHeight}px`;
    }
}

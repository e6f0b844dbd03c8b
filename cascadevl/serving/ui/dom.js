// Elements made without markup: a text is always a text here, whatever it holds.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`onclick: f`) and children. What is false or null is left out. */
export function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value === false || value == null) continue;
        if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== false && child != null));
    return node;
}

/** One of the symbols at the end of index.html. */
export function icon(name) {
    const svg = document.createElementNS(SVG, "svg");
    const use = document.createElementNS(SVG, "use");
    use.setAttribute("href", `#i-${name}`);
    svg.setAttribute("aria-hidden", "true");
    svg.append(use);
    return svg;
}

/** A button that shows a symbol and is called by its label. */
export function iconButton(name, label, onclick, attributes = {}) {
    return el("button", { type: "button", "aria-label": label, title: label, onclick, ...attributes }, icon(name));
}

/** A function of an element: the end of the page stays in view while that grows, unless the reader scrolls away. */
export function endKeeper() {
    const page = document.scrollingElement;
    const toEnd = () => (page.scrollTop = page.scrollHeight);
    let [atEnd, last] = [true, 0];
    addEventListener("scroll", () => {
        const near = page.scrollTop + page.clientHeight > page.scrollHeight - 60;
        // Only upwards leaves it: when the event comes, the page may have grown below.
        atEnd = near || (atEnd && page.scrollTop >= last);
        last = page.scrollTop;
    });
    const observer = new ResizeObserver(() => atEnd && toEnd());
    return (node) => {
        observer.disconnect();
        observer.observe(node);
        toEnd();
    };
}

/** Tells a screen reader an answer sentence by sentence: a region that changed with every token would stutter. */
export class Announcer {
    #region = document.getElementById("announcer");
    #numTold = 0;

    begin(words) {
        this.#numTold = 0;
        this.#region.replaceChildren(el("p", {}, words));
    }

    /** `text`: all of the answer so far. */
    follow(text) {
        const sentences = text.slice(this.#numTold).match(/^[^]*[.!?\n](?=\s)/);
        if (sentences) this.#tell(sentences[0]);
    }

    end(text, words = "") {
        this.#tell(text.slice(this.#numTold));
        this.#tell(words);
    }

    #tell(text) {
        this.#numTold += text.length;
        const plain = text.replace(/<box>.*?<\/box>|<\/?ref>/g, "").trim();
        if (plain) this.#region.append(el("p", {}, plain));
    }
}

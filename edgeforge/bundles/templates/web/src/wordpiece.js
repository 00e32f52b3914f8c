export class WordPiece {
    settings;
    input;
    ids;
    special;
    /** `vocabulary`: the text of vocab.txt, one token a line. */
    constructor(settings, input, vocabulary) {
        this.settings = settings;
        this.input = input;
        this.ids = new Map(vocabulary.split('\n').slice(0, -1).map((token, id) => [token, id]));
        const words = Object.keys(settings.special).sort((one, other) => other.length - one.length);
        const escaped = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
        this.special = words.length ? new RegExp(`(${escaped.join('|')})`, 'u') : null;
    }
    /** The ids of a text with those before and behind every text, at most `max_length`. */
    encode(text) {
        const parts = this.special ? text.split(this.special) : [text];
        const ids = parts.flatMap((part, index) => index % 2 ? [this.settings.special[part]] : this.words(part).flatMap((word) => this.pieces(word)));
        const room = this.input.max_length - 2;
        const kept = this.input.truncate === 'right' ? ids.slice(0, room) : ids.slice(Math.max(0, ids.length - room));
        return [this.settings.before, ...kept, this.settings.after];
    }
    words(text) {
        let characters = [...text];
        if (this.settings.clean_text) {
            characters = characters
                .filter((one) => !/[\0\uFFFD]/.test(one) && (/[\t\n\r]/.test(one) || !/[\p{Cc}\p{Cf}\p{Co}\p{Cs}]/u.test(one)))
                .map((one) => (/\p{White_Space}/u.test(one) ? ' ' : one));
        }
        if (this.settings.handle_chinese_chars)
            characters = characters.map((one) => (isChinese(one) ? ` ${one} ` : one));
        let cleaned = characters.join('');
        if (this.settings.strip_accents)
            cleaned = cleaned.normalize('NFD').replace(/\p{Mn}/gu, '');
        if (this.settings.lowercase)
            cleaned = [...cleaned].map((one) => one.toLowerCase()).join('');
        return cleaned.match(/[\p{P}$+<=>^`|~]|[^\p{White_Space}\p{P}$+<=>^`|~]+/gu) ?? [];
    }
    pieces(word) {
        const unknown = [this.ids.get(this.settings.unknown)];
        const letters = [...word];
        if (letters.length > this.settings.longest_word)
            return unknown;
        const found = [];
        for (let start = 0; start < letters.length;) {
            let end = letters.length;
            let id;
            for (; end > start; end--) {
                id = this.ids.get((start ? this.settings.prefix : '') + letters.slice(start, end).join(''));
                if (id !== undefined)
                    break;
            }
            if (id === undefined)
                return unknown;
            found.push(id);
            start = end;
        }
        return found;
    }
}
const CHINESE = [
    [0x4e00, 0x9fff], [0x3400, 0x4dbf], [0x20000, 0x2a6df], [0x2a700, 0x2b73f], [0x2b740, 0x2b81f], [0x2b920, 0x2ceaf],
    [0xf900, 0xfaff], [0x2f800, 0x2fa1f],
];
function isChinese(character) {
    const point = character.codePointAt(0);
    return CHINESE.some(([first, last]) => first <= point && point <= last);
}

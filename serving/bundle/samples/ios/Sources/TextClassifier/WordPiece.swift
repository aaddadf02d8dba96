// BERT's tokeniser: text in, token ids out, written to give the same ids as Hugging Face's `tokenizers`.
//
// Characters are classified by unicode.txt, not by the phone, whose Unicode version is its own. Tokens are compared code
// point by code point: Swift's strings are equal when they look equal, which a vocabulary must not be.

import Foundation

private typealias Code = UInt32

/// The tables of unicode.txt.
private struct Characters {
    struct Ranges {
        private var firsts: [Code] = []
        private var lasts: [Code] = []

        mutating func add(_ first: Code, _ last: Code) {
            firsts.append(first)
            lasts.append(last)
        }

        func contains(_ code: Code) -> Bool {
            var low = 0
            var high = firsts.count
            while low < high {
                let middle = (low + high) / 2
                if firsts[middle] <= code { low = middle + 1 } else { high = middle }
            }
            return low > 0 && code <= lasts[low - 1]
        }
    }

    private(set) var drop = Ranges()
    private(set) var space = Ranges()
    private(set) var chinese = Ranges()
    private(set) var mark = Ranges()
    private(set) var punctuation = Ranges()
    private var order: [Code: Code] = [:]
    private var split: [Code: [Code]] = [:]
    private var lower: [Code: [Code]] = [:]

    init(_ text: Data) {
        for line in text.split(separator: 10) {
            let words = String(decoding: line, as: UTF8.self).split(separator: " ")
            if words.count < 2 || words[0] == "#" { continue }
            let numbers = words.dropFirst().compactMap { Code($0, radix: 16) }
            switch words[0] {
            case "split":
                split[numbers[0]] = Array(numbers.dropFirst())
            case "order":
                for code in numbers[0]...numbers[1] { order[code] = numbers[2] }
            case "lower":
                for code in stride(from: numbers[0], through: numbers[1], by: Int(numbers[2])) {
                    lower[code] = [numbers[3] + code - numbers[0]] + numbers.dropFirst(4)
                }
            case "drop": drop.add(numbers[0], numbers[1])
            case "space": space.add(numbers[0], numbers[1])
            case "cjk": chinese.add(numbers[0], numbers[1])
            case "mark": mark.add(numbers[0], numbers[1])
            case "punct": punctuation.add(numbers[0], numbers[1])
            default: break
            }
        }
    }

    func lowered(_ code: Code) -> [Code] { lower[code] ?? [code] }

    /// Canonical decomposition and order, Unicode's NFD.
    func decompose(_ codes: [Code]) -> [Code] {
        var out: [Code] = []
        for code in codes {
            if code >= 0xAC00 && code < 0xAC00 + 11172 {  // Hangul syllables: arithmetic
                let at = code - 0xAC00
                out.append(0x1100 + at / 588)
                out.append(0x1161 + at % 588 / 28)
                if at % 28 != 0 { out.append(0x11A7 + at % 28) }
            } else {
                out.append(contentsOf: split[code] ?? [code])
            }
        }
        for i in out.indices.dropFirst() {
            let code = out[i]
            let own = order[code] ?? 0
            var j = i
            while own != 0 && j > 0 && (order[out[j - 1]] ?? 0) > own {
                out[j] = out[j - 1]
                j -= 1
            }
            out[j] = code
        }
        return out
    }
}

/// Changes nothing after it was made: one object serves any number of threads.
public final class WordPiece: Sendable {
    /// What preprocessing.json says under "tokenizer".
    public struct Settings: Decodable, Sendable {
        let lowercase: Bool
        let stripAccents: Bool
        let cleanText: Bool
        let chineseChars: Bool
        let cls: Int64
        let sep: Int64
        let unk: Int64
        let maxLength: Int
        let maxChars: Int
        let prefix: String
    }

    private let settings: Settings
    private let characters: Characters
    private let prefix: [Code]
    private let special: [(name: [Code], id: Int64)]
    private let ids: [[Code]: Int64]

    /// vocabulary: vocab.txt, one token a line, its id is its line, from 0; characters: unicode.txt.
    public init(settings: Settings, specialTokens: [String: Int64], vocabulary: Data, characters: Data) {
        self.settings = settings
        self.characters = Characters(characters)
        prefix = WordPiece.codes(settings.prefix)
        special = specialTokens.map { (name: WordPiece.codes($0.key), id: $0.value) }
            .sorted { $0.name.count > $1.name.count }
        var ids: [[Code]: Int64] = [:]
        for (id, line) in vocabulary.split(separator: 10, omittingEmptySubsequences: false).enumerated() {
            ids[WordPiece.codes(String(decoding: line, as: UTF8.self))] = Int64(id)
        }
        self.ids = ids
    }

    /// Ids and type ids of a text or a pair, with [CLS] and [SEP].
    public func encode(_ text: String, pair: String? = nil) -> (ids: [Int64], types: [Int64]) {
        let second = pair.map { pieces(WordPiece.codes($0)) }
        let room = max(0, settings.maxLength - (second == nil ? 2 : 3))
        let (a, b) = WordPiece.truncate(pieces(WordPiece.codes(text)), second, room)
        var all = [settings.cls] + a + [settings.sep]
        var types = [Int64](repeating: 0, count: all.count)
        if let b = b {
            all += b + [settings.sep]
            types += [Int64](repeating: 1, count: b.count + 1)
        }
        return (all, types)
    }

    private static func codes(_ text: String) -> [Code] { text.unicodeScalars.map { $0.value } }

    /// Ids of a text without [CLS] and [SEP]; the name of a special token in it counts as that token.
    private func pieces(_ text: [Code]) -> [Int64] {
        var out: [Int64] = []
        var begin = 0
        var at = 0
        while at < text.count {
            guard let found = special.first(where: { text[at...].starts(with: $0.name) }) else {
                at += 1
                continue
            }
            addWords(Array(text[begin..<at]), &out)
            out.append(found.id)
            at += found.name.count
            begin = at
        }
        addWords(Array(text[begin...]), &out)
        return out
    }

    private func addWords(_ text: [Code], _ out: inout [Int64]) {
        var word: [Code] = []
        for code in normalize(text) {
            if characters.space.contains(code) {
                addWord(word, &out)
                word = []
            } else if characters.punctuation.contains(code) {
                addWord(word, &out)
                addWord([code], &out)
                word = []
            } else {
                word.append(code)
            }
        }
        addWord(word, &out)
    }

    private func normalize(_ text: [Code]) -> [Code] {
        let space: Code = 0x20
        var codes = text
        if settings.cleanText {
            codes = codes.filter { !characters.drop.contains($0) }
                .map { characters.space.contains($0) ? space : $0 }
        }
        if settings.chineseChars {
            codes = codes.flatMap { characters.chinese.contains($0) ? [space, $0, space] : [$0] }
        }
        if settings.stripAccents {
            codes = characters.decompose(codes).filter { !characters.mark.contains($0) }
        }
        if settings.lowercase {
            codes = codes.flatMap { characters.lowered($0) }
        }
        return codes
    }

    /// The longest piece of the vocabulary first, again and again; a word with a part that is none is unknown.
    private func addWord(_ word: [Code], _ out: inout [Int64]) {
        if word.isEmpty { return }
        if word.count > settings.maxChars {
            out.append(settings.unk)
            return
        }
        var found: [Int64] = []
        var begin = 0
        while begin < word.count {
            var end = word.count
            var id: Int64?
            while end > begin {
                id = ids[(begin == 0 ? [] : prefix) + word[begin..<end]]
                if id != nil { break }
                end -= 1
            }
            guard let piece = id else {
                out.append(settings.unk)
                return
            }
            found.append(piece)
            begin = end
        }
        out.append(contentsOf: found)
    }

    /// Cut one list, or the longer of two, to `room` ids: transformers' "longest_first".
    private static func truncate(_ first: [Int64], _ second: [Int64]?, _ room: Int) -> ([Int64], [Int64]?) {
        guard let second = second else { return (Array(first.prefix(room)), nil) }
        if first.count + second.count <= room { return (first, second) }
        var few = min(first.count, second.count)
        var many = few > room ? few : max(few, room - few)
        if few + many > room {
            few = room / 2
            many = room / 2 + room % 2
        }
        let firstIsLonger = first.count > second.count
        return (Array(first.prefix(firstIsLonger ? many : few)), Array(second.prefix(firstIsLonger ? few : many)))
    }
}

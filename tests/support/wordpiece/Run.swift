// run settings.json vocab.txt unicode.txt: the records of run.c on standard input, the same lines out.
import Foundation

@main
struct Run {
    struct Names: Decodable { let special_tokens: [String: Int64] }

    static func main() throws {
        let files = try CommandLine.arguments.dropFirst().map { try Data(contentsOf: URL(fileURLWithPath: $0)) }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let tokenizer = WordPiece(
            settings: try decoder.decode(WordPiece.Settings.self, from: files[0]),
            specialTokens: try JSONDecoder().decode(Names.self, from: files[0]).special_tokens,
            vocabulary: files[1], characters: files[2])
        let records = FileHandle.standardInput.readDataToEndOfFile()
            .split(separator: 0, omittingEmptySubsequences: false)
            .map { String(decoding: $0, as: UTF8.self) }
        var lines = ""
        for i in stride(from: 0, to: records.count - 1, by: 2) {
            let text = String(records[i].unicodeScalars.dropFirst(2))  // not characters: a mark joins the blank
            let found = tokenizer.encode(text, pair: records[i].hasPrefix("1") ? records[i + 1] : nil)
            lines += "\(found.ids.map(String.init).joined(separator: " ")) | "
            lines += "\(found.types.map(String.init).joined(separator: " "))\n"
        }
        print(lines, terminator: "")
    }
}

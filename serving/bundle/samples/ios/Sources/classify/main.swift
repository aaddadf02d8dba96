// swift run classify "a fine film": tries the package on a Mac.

import Foundation
import TextClassifier

func stop(_ message: String) -> Never {
    FileHandle.standardError.write(Data("\(message)\n".utf8))
    exit(1)
}

let words = Array(CommandLine.arguments.dropFirst())
let numbers = words.count == 2 && words[0] == "--ids" ? words[1].split(separator: ",").map { Int64($0) } : []
if words.isEmpty || words.count > 2 || words == ["--ids"] || numbers.contains(nil) {
    stop("usage: classify TEXT [SECOND TEXT], or classify --ids 2,4,5,3")
}
do {
    let classifier = try TextClassifier()
    let answer = numbers.isEmpty
        ? try classifier.classify(words[0], pair: words.count == 2 ? words[1] : nil)
        : try classifier.classify(ids: numbers.compactMap { $0 })
    print(answer.label, answer.probability ?? Double(answer.score))
} catch {
    stop("classify: \(error)")
}

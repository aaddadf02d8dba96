// swift run classify "a fine film": tries the package on a Mac.

import TextClassifier

let words = Array(CommandLine.arguments.dropFirst())
if words.isEmpty || words.count > 2 {
    print("usage: classify TEXT [SECOND TEXT]")
} else {
    let classifier = try TextClassifier()
    let answer = try classifier.classify(words[0], pair: words.count == 2 ? words[1] : nil)
    print(answer.label, answer.probability ?? Double(answer.score))
}

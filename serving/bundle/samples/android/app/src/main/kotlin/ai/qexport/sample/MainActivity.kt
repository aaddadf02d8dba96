// A text field, a button, and the answer under it.

package ai.qexport.sample

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.TextView
import java.util.concurrent.Executors

class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private val classifier by lazy { Classifier(assets) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val text = EditText(this)
        val button = Button(this)
        val output = TextView(this)
        button.text = "Classify"
        button.setOnClickListener {
            val words = text.text.toString()
            worker.execute {
                val shown = try {
                    show(classifier.classify(words))
                } catch (error: Exception) {
                    error.message ?: error.javaClass.simpleName
                }
                runOnUiThread { output.text = shown }
            }
        }
        val column = LinearLayout(this)
        column.orientation = LinearLayout.VERTICAL
        column.setPadding(48, 96, 48, 48)
        for (view in listOf(text, button, output)) column.addView(view)
        setContentView(column)
    }

    override fun onDestroy() {
        worker.shutdown()
        super.onDestroy()
    }

    private fun show(answer: Answer): String = "%s %.6f".format(answer.label, answer.probability ?: answer.score.toDouble())
}
